"""lora on public architectures: what a device patches is what merging gives, and little travels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import convpeft
from convpeft.adapter_description import MAP
from convpeft.deployment.patch_map import write_patch_map
from convpeft.deployment.patching import patch_network
from convpeft.sites import find_head
from deployment.patched_networks import run_onnx, save_adapter, settled, write_base
from measuring import measured, times

pytestmark = pytest.mark.architectures

TOLERANCE = 1e-4
MOST_BEYOND = 64 * 2**10  # bytes of a patch that are not the adapter's
# Squeeze-excitation and depthwise; a convolution as classifier; weights standardised in the graph: `make test`'s three.
SOURCES = (
    "timm/mobilenetv3_small_050",
    "torchvision/squeezenet1_1",
    "timm/nf_resnet26",
    "timm/resnet18",
    "timm/convnext_atto",
    "timm/regnety_002",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/mnasnet0_5",
    "timm/efficientnet_b0",
    "torchvision/resnet50",
)
X = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All ten when asked for by the marker or in full, otherwise three."""
    whole = metafunc.config.getoption("markexpr") == "architectures" or times(full=1, reduced=0)
    if "source" in metafunc.fixturenames:
        metafunc.parametrize("source", SOURCES if whole else SOURCES[:3])


def base_of(source: str) -> nn.Module:
    """Random weights, with logits near 1 as a trained network has them."""
    torch.manual_seed(1)
    model = settled(convpeft.load_model(source, pretrained=False))
    head = find_head(model)
    assert head is not None
    with torch.no_grad():
        model.get_submodule(head).weight /= model(X).abs().max()
    return model


def test_there_are_ten_architectures() -> None:
    assert len(set(SOURCES)) == 10


def test_architecture_is_patched_as_it_is_merged(source: str, tmp_path: Path) -> None:
    base = write_base(base_of(source), tmp_path / "base.onnx", X[:2])
    model = base_of(source)
    adapter = save_adapter(model, tmp_path / "adapter", "lora", rank=4, num_classes=7)
    write_patch_map(adapter, base_of(source))
    measured(f"bytes of the map of {source}", (adapter / MAP).stat().st_size)
    assert (adapter / MAP).stat().st_size <= MOST_BEYOND
    patch_network(base, adapter, tmp_path / "patched.onnx")
    with torch.no_grad():
        expected = convpeft.merge(model)(X).numpy()
    error = np.abs(run_onnx(tmp_path / "patched.onnx", X) - expected).max()
    assert error <= TOLERANCE * max(1.0, float(np.abs(expected).max()))
