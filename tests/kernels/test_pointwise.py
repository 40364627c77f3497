"""A 1x1 convolution as a product of matrices is the same operation, and its output may be changed in place."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convpeft
from contract.networks import relative_error
from convpeft.kernels.operations import Convolution, Pointwise

EXACT = 1e-12  # float64, sums in another order


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [(5, 7), (7, 5), (3, 40), (40, 3)])
@pytest.mark.parametrize("side", [2, 9])
def test_pointwise_equals_pytorchs_convolution(channels, side):
    inside, out = channels
    x, grad = images(3, inside, side, side), images(3, out, side, side)
    weight, bias = torch.randn(out, inside, 1, 1, dtype=torch.float64), torch.randn(out, dtype=torch.float64)
    expected = F.conv2d(x, weight, bias)
    of_x, of_weight = torch.autograd.grad(F.conv2d(x.requires_grad_(), weight.requires_grad_()), [x, weight], grad)
    x, weight = x.detach(), weight.detach()
    pointwise = Pointwise()
    for found, wanted in (
        (pointwise.run(x, weight, bias), expected),
        (pointwise.input_gradient(grad, x, weight), of_x),
        (pointwise.weight_gradient(grad, x, weight), of_weight),
        (pointwise.mix(x, weight.flatten(1)), expected - bias.view(1, -1, 1, 1)),
        (pointwise.pair(grad, x), torch.einsum("bohw,bihw->oi", grad, x)),
        (pointwise.total(grad), grad.sum([0, 2, 3])),
    ):
        torch.testing.assert_close(found, wanted, rtol=EXACT, atol=EXACT)


def test_pair_of_a_convolution_equals_einsum_in_both_layouts():
    operation = Convolution((1, 1), (0, 0), (1, 1))
    for wide, thin, side in ((30, 4, 9), (30, 4, 2), (4, 30, 3)):
        first, second = images(2, wide, side, side), images(2, thin, side, side)
        wanted = torch.einsum("bohw,bihw->oi", first, second)
        for layout in (torch.channels_last, torch.contiguous_format):
            found = operation.pair(first.contiguous(memory_format=layout), second.contiguous(memory_format=layout))
            torch.testing.assert_close(found, wanted, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("method", ["lora", "lora-fa", "dora"])
def test_output_may_be_changed_in_place_and_gradients_are_those_of_the_definition(method):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 200, 1), nn.ReLU(inplace=True), nn.Conv2d(200, 140, 1)).double()
    convpeft.attach(net, method, rank=3, include=["conv"])
    for tensor in convpeft.trainable_parameters(net):
        nn.init.normal_(tensor, std=0.3)
    net.train()
    x = images(4, 16, 6, 6).requires_grad_()
    found = []
    for kernel in ("weight", "hybrid" if method != "dora" else "rebuilt"):
        convpeft.set_kernels(net, kernel=kernel, layout="channels_last")
        output = net(x)
        output.add_(1)  # as a residual connection does
        trained = list(convpeft.trainable_parameters(net))
        first = torch.autograd.grad(output.square().sum(), [x, *trained], create_graph=True)
        second = torch.autograd.grad(sum(each.square().sum() for each in first), [x, *trained])
        found.append([output, *first, *second])
    assert "weight" not in convpeft.kernels_of(net).sites.values()
    for definition, kernel in zip(*found, strict=True):
        assert relative_error(kernel, definition) < 1e-9
