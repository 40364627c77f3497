"""The frozen BatchNorm: PyTorch's numbers and gradients, bit for bit, without keeping the input."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convpeft
from convpeft.frozen_norm import frozen_batch_norm
from small_network import by_definition


def arguments(dtype: torch.dtype, *, affine: bool = True) -> list:
    generator = torch.Generator().manual_seed(0)
    mean, weight, bias = (torch.randn(6, generator=generator).to(dtype) for _ in range(3))
    variance = (torch.rand(6, generator=generator) + 0.3).to(dtype)
    return [mean, variance, weight if affine else None, bias if affine else None]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 9), (4, 6, 5, 7), (2, 6, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_output_and_gradient_are_those_of_torch(shape: tuple, dtype: torch.dtype, affine: bool) -> None:
    fixed = arguments(dtype, affine=affine)
    x, grad = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    for layout in (torch.contiguous_format, *([torch.channels_last] if len(shape) == 4 else [])):
        one = x.clone(memory_format=layout).requires_grad_()
        other = x.clone(memory_format=layout).requires_grad_()
        found = frozen_batch_norm(one, *fixed, 1e-5)
        expected = F.batch_norm(other, *fixed, False, 0.0, 1e-5)
        assert torch.equal(found, expected)
        found.backward(grad.clone(memory_format=layout))
        expected.backward(grad.clone(memory_format=layout))
        assert torch.equal(one.grad, other.grad)
        assert one.grad.is_contiguous(memory_format=layout) == other.grad.is_contiguous(memory_format=layout)


def test_half_precision_input_with_wide_statistics_is_torchs_too() -> None:
    fixed = arguments(torch.float32)
    grads = []
    for norm in (frozen_batch_norm, lambda x, m, v, w, b, eps: F.batch_norm(x, m, v, w, b, False, 0.0, eps)):
        x = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
        y = norm(x, *fixed, 1e-5)
        y.backward(torch.ones_like(y))
        grads.append(x.grad)
    assert torch.equal(*grads)


def test_second_derivatives_are_right() -> None:
    fixed = arguments(torch.float64)
    x = torch.randn(2, 6, 3, 3, dtype=torch.float64, requires_grad=True)

    def cubed(x: Tensor) -> Tensor:
        return frozen_batch_norm(x, *fixed, 1e-5) ** 3

    assert torch.autograd.gradcheck(cubed, (x,))
    assert torch.autograd.gradgradcheck(cubed, (x,))


def test_transforms_take_torchs_own_operation() -> None:
    fixed = arguments(torch.float64)
    x = torch.randn(5, 2, 6, 3, dtype=torch.float64)
    per_sample = torch.func.vmap(torch.func.grad(lambda x: (frozen_batch_norm(x, *fixed, 1e-5) ** 2).sum()))(x)
    y = x.clone().requires_grad_()
    (F.batch_norm(y.flatten(0, 1), *fixed, False, 0.0, 1e-5) ** 2).sum().backward()
    assert torch.allclose(per_sample, y.grad)


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, parameters and the input aside."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), x)}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(x).sum().backward()
    return sum(kept.values())


def test_input_of_a_frozen_norm_is_not_kept() -> None:
    x = torch.randn(2, 3, 16, 16)
    sizes = []
    for norm in (nn.Identity(), nn.BatchNorm2d(8)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 2))
        sizes.append(saved_bytes(convpeft.attach(model, "lora", rank=2).train(), x))
    assert sizes[1] <= sizes[0] + 8 * 4 * 4  # a few numbers a channel


def test_input_is_kept_where_the_norm_is_trained() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 2)).double()
    convpeft.attach(model, "lora+norm-tuning").train()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model(x).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if "norm-tuning" in name}
    assert len(grads) == 2
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads.values())


def test_timms_norm_with_activation_keeps_its_numbers_and_not_its_input() -> None:
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    norm = BatchNormAct2d(8, drop_layer=nn.Identity, act_layer=nn.Hardswish)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Flatten(), nn.Linear(8 * 36, 2))
    x = torch.randn(2, 3, 8, 8)
    expected = model.eval()(x)
    adapted = convpeft.attach(model, "lora", rank=2).train()
    assert torch.equal(by_definition(adapted)(x), expected)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Flatten(), nn.Linear(8 * 36, 2))
    without = saved_bytes(convpeft.attach(plain, "lora", rank=2).train(), x)
    assert saved_bytes(adapted, x) <= without + 8 * 4 * 4  # a few numbers a channel
