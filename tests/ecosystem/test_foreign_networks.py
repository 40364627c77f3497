"""Networks of timm, torchvision, transformers and segmentation-models-pytorch attach without special code."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import convpeft
from convpeft.checking.subject import perturb
from convpeft.sites import find_head
from ecosystem.foreign import FOREIGN, Foreign, images

# The merged weight is the one that the adapter computed; should it choose another kernel, layers round differently.
MERGED_TOLERANCE = 1e-5
MOVED = 1e-3  # what noise on the adapter changes of the output at least, relative to it


@pytest.fixture(params=FOREIGN, scope="module")
def foreign(request: pytest.FixtureRequest) -> Foreign:
    found = FOREIGN[request.param]
    if not found.is_there:
        pytest.skip(f"{found.package} is not installed")
    return found


@pytest.fixture(scope="module")
def base(foreign: Foreign) -> nn.Module:
    return foreign.model()


@pytest.fixture
def fresh(base: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    return convpeft.attach(copy.deepcopy(base), "lora", rank=4, generator=generator)


@pytest.fixture
def moved(fresh: nn.Module) -> nn.Module:
    """Every tensor of the adapter is another than at the start."""
    perturb(fresh, 0.1, torch.Generator().manual_seed(2))
    return fresh


def run(foreign: Foreign, model: nn.Module, x: Tensor | None = None) -> list[Tensor]:
    with torch.no_grad():
        return foreign.run(model, images() if x is None else x)


def all_equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    assert len(found) == len(expected) > 0
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


def digest(tensors: dict[str, Tensor]) -> dict[str, str]:
    return {key: hashlib.sha256(value.detach().numpy().tobytes()).hexdigest() for key, value in tensors.items()}


def test_head_is_found_where_there_is_one(foreign: Foreign, base: nn.Module) -> None:
    assert find_head(base) == foreign.head


def test_fresh_adapter_changes_no_bit(foreign: Foreign, base: nn.Module, fresh: nn.Module) -> None:
    assert all_equal(run(foreign, fresh), run(foreign, base))


def test_perturbed_adapter_moves_every_output(foreign: Foreign, base: nn.Module, moved: nn.Module) -> None:
    """An encoder hands its images on as the first of its outputs; no adapter moves those."""
    for found, expected in zip(run(foreign, moved), run(foreign, base), strict=True):
        if expected.shape[1:2] != (3,):
            assert error([found], [expected]) > MOVED


def test_merged_equals_adapted(foreign: Foreign, base: nn.Module, moved: nn.Module) -> None:
    plain = convpeft.merged(moved)
    assert error(run(foreign, plain), run(foreign, moved)) <= MERGED_TOLERANCE
    assert plain.state_dict().keys() == base.state_dict().keys()
    assert not any("Adapted" in type(module).__name__ for module in plain.modules())


def test_every_convolution_is_adapted(base: nn.Module, moved: nn.Module) -> None:
    """Compared layer by layer with W + up @ down, worked out here."""
    plain = convpeft.merged(moved)
    head = find_head(base)
    for path, layer in base.named_modules():
        if isinstance(layer, nn.Conv2d) and path != head:
            parts = moved.get_submodule(path).convpeft
            (down,) = (p for name, p in parts.named_parameters() if name.endswith("down"))
            (up,) = (p for name, p in parts.named_parameters() if name.endswith("up"))
            expected = layer.weight + (up @ down).reshape(layer.weight.shape)
            assert torch.allclose(plain.get_submodule(path).weight, expected, rtol=1e-5, atol=1e-6), path


def test_saved_and_loaded_gives_the_same_bits(
    foreign: Foreign, base: nn.Module, moved: nn.Module, tmp_path: Path
) -> None:
    convpeft.save(moved, tmp_path / "adapter")
    again = convpeft.load(copy.deepcopy(base), tmp_path / "adapter").eval()
    assert all_equal(run(foreign, again), run(foreign, moved))


def test_disabled_and_detached_give_the_base_back(foreign: Foreign, base: nn.Module, moved: nn.Module) -> None:
    expected = run(foreign, base)
    with convpeft.disabled(moved):
        assert all_equal(run(foreign, moved), expected)
    convpeft.detach(moved)
    assert all_equal(run(foreign, moved), expected)
    assert digest(dict(moved.state_dict())) == digest(dict(base.state_dict()))


def test_training_moves_every_adapter_and_nothing_else(foreign: Foreign, base: nn.Module, moved: nn.Module) -> None:
    start = {name: value.detach().clone() for name, value in moved.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(convpeft.param_groups(moved), lr=0.01)
    moved.train()
    sum(each.square().mean() for each in foreign.run(moved, images(3))).backward()
    optimizer.step()
    own = {name: value for name, value in moved.state_dict().items() if name in base.state_dict()}
    assert digest(own) == digest(dict(base.state_dict()))
    assert len(start) > 4
    assert [name for name, value in start.items() if torch.equal(value, moved.get_parameter(name))] == []


def test_count_is_that_of_the_parameters_that_train(fresh: nn.Module) -> None:
    assert convpeft.count(fresh).trainable == sum(p.numel() for p in fresh.parameters() if p.requires_grad)


def test_check_passes(base: nn.Module) -> None:
    report = convpeft.check(copy.deepcopy(base), example=images())
    assert report.passed, str(report)


def test_new_head_gives_new_classes_and_the_old_one_stays(foreign: Foreign, base: nn.Module) -> None:
    if foreign.head is None:
        with pytest.raises(convpeft.ModelError, match="to be the classifier"):
            convpeft.attach(copy.deepcopy(base), "lora", num_classes=3)
        return
    model = copy.deepcopy(base)
    if hasattr(getattr(model, "config", None), "num_labels"):
        model.config = copy.deepcopy(model.config)
        model.config.num_labels = 3
    convpeft.attach(model, "lora", rank=4, num_classes=3)
    assert run(foreign, model)[0].shape[1] == 3
    with convpeft.disabled(model):
        assert all_equal(run(foreign, model), run(foreign, base))
