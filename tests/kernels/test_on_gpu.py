"""On a GPU every kernel is still the definition, and what is trained there works anywhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import convpeft
from contract.methods_under_test import METHODS, attach_anything, options_for, train_steps
from contract.networks import Geometry, Plan, geometries, plans, randomise, relative_error
from kernels.test_kernels import PRODUCTS, gradients, with_kernel

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:Using padding='same'")]

EXACT, IN_BF16, IN_FLOAT32 = 1e-9, 4e-2, 2e-4
FEWER = settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 convolutions of CUDA round to 11 bits by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def assert_same_there(model: nn.Module, x: Tensor, kernel: str, seed: int, *, at_most: float = EXACT) -> None:
    """Output and gradients of a kernel on the GPU are those of the definition on the CPU."""
    expected = gradients(with_kernel(model, "weight"), x, seed)
    moved = with_kernel(model.cuda(), kernel)
    given = x.cuda().requires_grad_()
    output = moved(given)
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
    inputs = [given, *convpeft.trainable_parameters(moved)]
    found = [output, *torch.autograd.grad(output, inputs, direction, materialize_grads=True)]
    scale = max(float(each.detach().abs().max()) for each in expected) or 1.0
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.is_cuda
        assert float((mine.cpu() - theirs).detach().abs().max()) / scale <= at_most


@pytest.mark.parametrize("kernel", ["hybrid", "side", "fused", "rebuilt", "auto"])
@pytest.mark.parametrize("method", PRODUCTS)
@FEWER
@given(geometry=geometries(), data=st.data(), seed=st.integers(0, 2**20), last=st.booleans())
def test_kernel_of_a_convolution_is_the_definition(
    kernel: str, method: str, geometry: Geometry, data: st.DataObject, seed: int, last: bool
) -> None:
    torch.manual_seed(seed)
    layer = geometry.build().double()
    try:
        convpeft.attach(layer, method, include=["conv"], **data.draw(options_for(method)))
    except convpeft.OptionError as error:
        assert "finds no layer" in str(error)
        assume(False)
    randomise(layer, seed)
    x = torch.randn(2, geometry.in_channels, *geometry.space, dtype=torch.float64)
    if last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    assert_same_there(layer, x, kernel, seed)


@pytest.mark.parametrize("method", METHODS)
@FEWER
@given(plan=plans(), data=st.data())
def test_network_by_default_is_the_definition(method: str, plan: Plan, data: st.DataObject) -> None:
    model = plan.build(torch.float64)
    model.dropout = nn.Identity()
    options = {key: value for key, value in data.draw(options_for(method)).items() if key != "dropout"}
    randomise(attach_anything(model, method, **options), plan.seed)
    try:
        assert_same_there(model, plan.example(torch.float64), "default", plan.seed)
    except ValueError as error:
        assert "more than 1 value per channel" in str(error)


def resnet(method: str = "lora", **options: Any) -> nn.Module:
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None, num_classes=10)
    return randomise(convpeft.attach(model, method, **options), 1).cuda()


def loss_and_gradients(model: nn.Module, dtype: torch.dtype | None) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(8, 3, 64, 64, generator=generator).cuda()
    labels = torch.arange(8, device="cuda")
    with torch.autocast("cuda", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        loss = F.cross_entropy(model.train()(x), labels)
    return loss.detach(), list(torch.autograd.grad(loss, list(convpeft.trainable_parameters(model))))


@pytest.mark.parametrize("method", ["lora", "lora-fa", "dora", "loha", "lokr"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=["float32", "bf16", "fp16"])
def test_resnet_has_the_gradients_of_the_definition(method: str, dtype: torch.dtype | None) -> None:
    model = resnet(method)
    found = loss_and_gradients(model, dtype)
    convpeft.set_kernels(model, kernel="weight", layout="contiguous", fold=False)
    expected = loss_and_gradients(model, dtype)
    limit = IN_FLOAT32 if dtype is None else IN_BF16
    assert abs(float(found[0] - expected[0])) <= limit * float(expected[0])
    mine, theirs = (torch.cat([each.flatten().double() for each in both]) for both in (found[1], expected[1]))
    assert float((mine - theirs).norm() / theirs.norm()) <= 3 * limit


def test_half_precision_takes_channels_last_and_float32_does_not() -> None:
    model = resnet()
    loss_and_gradients(model, None)
    assert convpeft.kernels_of(model).layout == "contiguous"  # without TF32, see `full_precision`
    model = resnet()
    loss_and_gradients(model, torch.bfloat16)
    plan = convpeft.kernels_of(model)
    assert plan.layout == "channels_last"
    assert set(plan.sites.values()) == {"fused"}
    assert len(plan.folded) == 20


@pytest.mark.parametrize("method", METHODS)
def test_adapter_trained_on_a_gpu_says_the_same_on_a_cpu(method: str, tmp_path: Path) -> None:
    from small_network import X, network

    model = attach_anything(network().cuda(), method)
    optimizer = torch.optim.AdamW(list(convpeft.trainable_parameters(model)), lr=1e-2)
    train_steps(model, X.cuda(), optimizer, 3)
    expected = model.eval()(X.cuda()).detach().cpu()
    convpeft.save(model, tmp_path / "adapter")
    loaded = convpeft.load(network(), tmp_path / "adapter").eval()
    assert relative_error(loaded(X), expected) <= 1e-4
    assert not any(each.is_cuda for each in loaded.state_dict().values())


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_run_on_a_gpu_goes_from_images_to_figures(precision: str, tmp_path: Path) -> None:
    result = convpeft.train(
        {
            "out": str(tmp_path / "run"),
            "data": {"source": "glyphs:digits"},
            "model": {"source": "small-cnn"},
            "method": {"name": "lora", "rank": 4},
            "train": {"epochs": 2, "precision": precision, "seed": 0},
        }
    )
    assert result.test.accuracy > 0.3
