"""A compressed network: what is in it, what is told of it, and what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

import convpeft
from convpeft.compression import Compressor, multiplications
from convpeft.compression.judging import Judge, choosing_images
from convpeft.data.datasets import Dataset, array_split
from convpeft.errors import DataError, ModelError, OptionError
from convpeft.models import Preprocessing


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 12, 3, stride=2),
        nn.Conv2d(12, 6, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ).eval()


def always(model: nn.Module) -> float:
    return 1.0


def test_ordinary_convolutions_become_thin_and_the_others_say_why():
    model = network()
    done = convpeft.compress(model, always)
    assert set(done.thin) == {"0", "3"}
    assert [type(module) for module in done.model.modules() if "convpeft" in type(module).__module__] == []
    reasons = {each.path: each.reason for each in done.layers}
    assert reasons["2"].startswith("grouped: a depthwise kernel")
    assert reasons["4"].startswith("1x1: a matrix")
    assert reasons["0"] is None
    assert isinstance(model[0], nn.Conv2d)


def test_told_parameters_are_those_of_the_networks():
    model = network()
    done = convpeft.compress(model, always, method="tucker", include=["3"])
    sizes = [sum(p.numel() for p in each.parameters()) for each in (model, done.model)]
    assert list(done.parameters) == sizes
    (layer,) = done.layers
    assert layer.parameters[0] - layer.parameters[1] == sizes[0] - sizes[1] > 0


def test_excluded_layers_stay():
    assert set(convpeft.compress(network(), always, exclude=["0"]).thin) == {"3"}


def test_error_and_sensitivity_are_told():
    done = convpeft.compress(network(), always, include=["3"])
    (layer,) = done.to_dict()["layers"]
    assert 0 < layer["error"] < 1
    assert layer["sensitivity"] < layer["plain_sensitivity"]


def test_same_seed_gives_the_same_bits_and_the_global_generator_stays():
    state = torch.get_rng_state()
    first, second = (convpeft.compress(network(), always, seed=3).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    torch.manual_seed(0)
    network()
    wanted = torch.get_rng_state()
    convpeft.compress(network(), always)
    assert torch.equal(torch.get_rng_state(), wanted)
    torch.set_rng_state(state)


@pytest.mark.parametrize("method", ["cpd-epc", "cpd", "tucker", "tucker-cpd"])
def test_network_of_every_method_runs_and_is_told_within_the_drop(method):
    images = torch.randn(8, 3, 9, 9)
    wanted = network()(images)

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return 1 - float((model(images) - wanted).norm() / wanted.norm())

    done = convpeft.compress(network(), accuracy, method=method, drop=0.2, candidates=6)
    assert done.accuracy[0] == 1.0
    assert done.accuracy[1] == pytest.approx(accuracy(done.model))
    assert done.accuracy[1] >= 0.8
    assert done.parameters[1] < done.parameters[0]


@pytest.mark.parametrize("method", ["cpd-epc", "tucker-cpd"])
def test_drops_of_one_compressor_share_trials_and_each_gives_what_it_gives_by_itself(method):
    images = torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    wanted, asked = network()(images), []

    def accuracy(model: nn.Module) -> float:
        asked.append(model)
        with torch.no_grad():
            return 1 - float((model(images) - wanted).norm() / wanted.norm())

    shared = Compressor(network(), accuracy, method=method, candidates=6)
    drops = (0.4, 0.2, 0.05)
    found, together = [shared.within(drop) for drop in drops], len(asked)
    alone = [convpeft.compress(network(), accuracy, method=method, drop=drop, candidates=6) for drop in drops]
    assert together < len(asked) - together
    assert found[-1].trials == together
    for one, other in zip(found, alone, strict=True):
        assert (one.thin, one.accuracy, one.parameters) == (other.thin, other.accuracy, other.parameters)
        assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "cdp"}, r"method='cdp' does not exist\. Did you mean 'cpd'"),
        ({"drop": 1.0}, r"drop=1\.0 is out of range, it must be in \[0, 1\)"),
        ({"drop": float("nan")}, "0.005 is half a point of accuracy"),
        ({"candidates": 0}, "candidates=0 is out of range, it must be at least 1"),
        ({"include": ["nowhere"]}, "names no layer of this model"),
    ],
)
def test_option_out_of_range_is_refused(options, words):
    with pytest.raises(OptionError, match=words):
        convpeft.compress(network(), always, **options)


def test_model_without_an_ordinary_convolution_is_refused():
    with pytest.raises(ModelError, match=r"no convolution of this model can be compressed \('2' is grouped"):
        convpeft.compress(network(), always, include=["2"])


def test_model_with_adapters_is_refused():
    model = convpeft.attach(network(), "lora", rank=1)
    with pytest.raises(ModelError, match=r"carries adapters\. Merge them first"):
        convpeft.compress(model, always)


def test_multiplications_are_those_of_the_formula():
    found = multiplications(network(), (3, 9, 9))
    assert found == {
        "0": 81 * 8 * 3 * 9,
        "2": 49 * 8 * 9,
        "3": 9 * 12 * 8 * 9,
        "4": 9 * 6 * 12,
        "7": 6 * 4,
    }


def test_multiplications_of_a_transposed_convolution_count_its_inputs():
    assert multiplications(nn.Sequential(nn.ConvTranspose2d(3, 5, 2, stride=2)), (3, 4, 4)) == {"0": 16 * 3 * 5 * 4}


def test_image_of_a_wrong_size_is_refused_and_no_hook_is_left():
    model = network()
    with pytest.raises(ModelError, match=r"the model does not run on one image 2x9x9"):
        multiplications(model, (2, 9, 9))
    assert not any(module._forward_hooks for module in model.modules())


PLAIN = Preprocessing((8, 8), "squash", 1.0, (0.5,), (0.5,), 1, "nearest")


def dataset(classes: int = 4) -> Dataset:
    rng = np.random.default_rng(0)
    splits = [
        array_split(name, rng.integers(0, 255, (count, 8, 8), dtype=np.uint8), np.arange(count) % classes)
        for name, count in (("train", 40), ("val", 20), ("test", 20))
    ]
    return Dataset("made", tuple(f"class {n}" for n in range(classes)), *splits)


def test_choosing_images_are_of_the_validation_split():
    found = choosing_images(dataset(), 8, seed=0)
    assert len(found) == 8
    assert set(found.ids) < {f"val/{number}" for number in range(20)}
    assert found.class_counts(4).tolist() == [2, 2, 2, 2]
    assert len(choosing_images(dataset(), 1000, seed=0)) == 20


def judged(model: nn.Module, classes: int = 4) -> Judge:
    return Judge(dataset().val, PLAIN, classes=classes)


def test_judge_refuses_data_of_other_classes():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(DataError, match=r"the model has 5 outputs, the data 4 classes"):
        judged(model).predictions(model)


def test_judge_refuses_a_network_that_does_not_run():
    model = nn.Sequential(nn.Flatten(), nn.Linear(65, 4))
    with pytest.raises(ModelError, match="the model does not run on these images"):
        judged(model).accuracy(model)


def test_network_that_answers_with_nan_gets_nothing_right():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    nn.init.constant_(model[1].weight, float("nan"))
    assert judged(model).accuracy(model) == 0.0
