"""The layers on which a peer is compared, and the comparison: equal adapter tensors, equal outputs."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import convpeft
from contract.networks import adapter_tensors, randomise, relative_error

# The same formula in another order of float32 operations: some hundred roundings of 6e-8.
TOLERANCE = 1e-5
# An adapter that hardly moves the output would agree with anything.
LEAST_EFFECT = 0.01

RANK, ALPHA = 2, 3.0  # rank 2 fits the smallest layer below; alpha / rank is neither 1 nor its own square

PLAIN: dict[str, dict[str, Any]] = {
    "square": {"kernel_size": 3, "padding": 1},
    "oblong-strided": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "bias": False},
    "pointwise": {"kernel_size": 1},
}
DILATED: dict[str, dict[str, Any]] = {"dilated": {"kernel_size": 3, "padding": 2, "dilation": 2}}
GROUPED: dict[str, dict[str, Any]] = {
    "grouped": {"kernel_size": 3, "stride": 2, "groups": 4},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 16},
}
PADDED: dict[str, dict[str, Any]] = {"circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}}

# LyCORIS's names of our tensors, which peft has too.
LOHA_NAMES = {
    "up_first": "hada_w1_a",
    "down_first": "hada_w1_b",
    "up_second": "hada_w2_a",
    "down_second": "hada_w2_b",
}
LOKR_NAMES = {
    "first": "lokr_w1",
    "up_first": "lokr_w1_a",
    "down_first": "lokr_w1_b",
    "second": "lokr_w2",
    "up_second": "lokr_w2_a",
    "down_second": "lokr_w2_b",
}
# Whole and low-rank factors and another split; alpha is without effect where both factors are whole.
LOKR_OPTIONS: dict[str, dict[str, Any]] = {
    "second-low": {"rank": RANK, "alpha": ALPHA},
    "both-low": {"rank": 1, "alpha": ALPHA, "decompose_both": True},
    "whole": {"rank": 8, "alpha": ALPHA},
    "halves": {"rank": RANK, "alpha": ALPHA, "factor": 2},
}

# What a peer makes of a frozen layer and our adapter's tensors by their short names.
Peer = Callable[[nn.Module, Mapping[str, Tensor]], Callable[[Tensor], Tensor]]


def convolution(arguments: Mapping[str, Any]) -> nn.Conv2d:
    """16 to 32 channels."""
    torch.manual_seed(1)
    return nn.Conv2d(16, 32, **arguments)


def linear() -> nn.Linear:
    """16 to 24 numbers."""
    torch.manual_seed(1)
    return nn.Linear(16, 24)


def example(layer: nn.Module) -> Tensor:
    """Two images, or five rows of numbers."""
    generator = torch.Generator().manual_seed(2)
    shape = (2, layer.in_channels, 7, 6) if isinstance(layer, nn.Conv2d) else (5, layer.in_features)
    return torch.randn(shape, generator=generator)


def assert_peer_agrees(peer: Peer, layer: nn.Module, method: str, **options: Any) -> None:
    """Perturb every tensor of our adapter on the layer, give the peer the same, and compare the outputs."""
    x, base = example(layer), copy.deepcopy(layer)
    kind = "conv" if isinstance(layer, nn.Conv2d) else "linear"
    ours = randomise(convpeft.attach(layer, method, include=[kind], **options))
    tensors = {name.rpartition(".")[2]: tensor.detach() for name, tensor in adapter_tensors(ours)}
    plain = base(x)
    expected = peer(base, tensors)(x)
    assert relative_error(expected, plain) > LEAST_EFFECT
    assert relative_error(ours(x), expected) <= TOLERANCE


def fill(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write every adapter tensor of a peer: none may be left at its start, and none may be unknown."""
    assert set(parameters) == set(values)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name].reshape(parameter.shape))


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors under a peer's names."""
    return {names[name]: tensor for name, tensor in tensors.items()}


def magnitudes(layer: nn.Module, gain: Tensor) -> Tensor:
    """DoRA's m, the length of each filter: ours is a gain relative to the frozen one."""
    return gain * layer.weight.detach().flatten(1).norm(dim=1)
