"""A merged network runs as fast as its base, and an adapter's file is hardly larger than its numbers."""

import copy
import json
import time
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import nn

import convpeft
from convpeft.adapter_file import read_adapter
from convpeft.adapters import list_methods
from measuring import measured, times

pytestmark = pytest.mark.promise("L03")
SLOWER = 0.03  # of the time of the base
EXTRA = 64 * 1024  # bytes beside four for each number


def adapted(method: str, source: str = "cifar-resnet/20") -> nn.Module:
    torch.manual_seed(0)
    return convpeft.attach(convpeft.load_model(source, pretrained=False), method, num_classes=10)


def seconds(model: nn.Module, images: torch.Tensor) -> float:
    began = time.perf_counter()
    model(images)
    return time.perf_counter() - began


@pytest.mark.parametrize("method", ["lora", "residual-parallel", "tsa"])
def test_merged_network_is_as_fast_as_the_base(method):
    """Both take turns, whoever is first; the median of the ratios is deaf to what else the machine does."""
    model = adapted(method)
    base = convpeft.detach(copy.deepcopy(model)).eval()
    merged = convpeft.merged(model).eval()
    assert [type(each) for each in merged.modules()] == [type(each) for each in base.modules()]
    images, ratios = torch.rand(8, 3, 32, 32), []
    with torch.inference_mode():
        for turn in range(5 + times(full=600, reduced=150)):
            pair = (base, merged) if turn % 2 else (merged, base)
            taken = {each: seconds(each, images) for each in pair}
            ratios.append(taken[merged] / taken[base])
    slower = median(ratios[5:]) - 1
    measured("merged slower than the base by", slower)
    assert slower < SLOWER


@pytest.mark.parametrize("method", list_methods())
def test_file_is_hardly_larger_than_its_numbers(tmp_path: Path, method: str) -> None:
    path = convpeft.save(adapted(method), tmp_path / "adapter", classes=[f"class {number}" for number in range(10)])
    stored = sum(tensor.numel() for tensor in read_adapter(path).tensors.values())
    extra = sum(file.stat().st_size for file in path.iterdir()) - 4 * stored
    measured("bytes beside the numbers", extra)
    assert extra <= EXTRA


def test_file_for_a_large_network_is_hardly_larger_than_its_numbers(tmp_path: Path) -> None:
    path = convpeft.save(adapted("lora", "timm/resnet50"), tmp_path / "adapter")
    stored = sum(tensor.numel() for tensor in read_adapter(path).tensors.values())
    assert sum(file.stat().st_size for file in path.iterdir()) <= 4 * stored + EXTRA


def test_inspect_prints_what_is_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from convpeft.commands.listing import inspect_adapter

    path = convpeft.save(adapted("lora"), tmp_path / "adapter")
    tensors = read_adapter(path).tensors
    stored = sum(tensor.numel() for tensor in tensors.values())
    inspect_adapter(path, as_json=False)
    shown = capsys.readouterr().out
    assert f"{stored:,} in {len(tensors)} tensors" in shown
    assert f"{sum(file.stat().st_size for file in path.iterdir()):,} bytes" in shown
    inspect_adapter(path, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["stored"] == stored
    assert told["shapes"].keys() == tensors.keys()
