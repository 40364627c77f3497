"""Between the base and the fine-tuned network: the line itself, both its ends, and what has no line."""

import numpy as np
import pytest
import torch
from torch import nn

import convpeft
from contract.networks import randomise

IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 8, 3, groups=2),
        nn.Flatten(),
        nn.Linear(8 * 64, 4),
    ).eval()


def tuned() -> nn.Sequential:
    return randomise(convpeft.attach(network(), "full")).eval()


@pytest.mark.parametrize("coefficient", [0.0, 0.25, 0.5, 1.0])
def test_weights_and_statistics_lie_on_the_line(coefficient: float) -> None:
    base, trained = network().state_dict(), convpeft.merged(tuned()).state_dict()
    found = convpeft.merged(convpeft.interpolated(tuned(), coefficient)).state_dict()
    assert found.keys() == base.keys()
    for key in base.keys() - {"1.num_batches_tracked"}:
        ends = [each[key].double().numpy() for each in (base, trained)]
        assert np.abs(ends[1] - ends[0]).max() > 1e-3
        expected = (1 - coefficient) * ends[0] + coefficient * ends[1]
        np.testing.assert_allclose(found[key].double().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_both_ends_are_exact() -> None:
    model = tuned()
    assert torch.equal(convpeft.interpolated(model, 1.0)(IMAGES), model(IMAGES))
    assert torch.equal(convpeft.interpolated(model, 0.0)(IMAGES), network()(IMAGES))


def test_model_stays_and_the_copy_still_switches() -> None:
    model = randomise(convpeft.attach(network(), "full", num_classes=3)).eval()
    before = model(IMAGES)
    twin = convpeft.interpolated(model, 0.0)
    assert torch.equal(model(IMAGES), before)
    assert twin(IMAGES).shape == (5, 3)
    for switched in (convpeft.old_head(twin), convpeft.disabled(twin)):
        with switched:
            assert torch.equal(twin(IMAGES), network()(IMAGES))


def test_fresh_head_stays_as_it_was_trained() -> None:
    model = randomise(convpeft.attach(network(), "full", num_classes=3))
    heads = [convpeft.merged(each)[5].weight for each in (model, convpeft.interpolated(model, 0.25))]
    assert torch.equal(heads[0], heads[1])


@pytest.mark.parametrize("coefficient", [-0.1, 1.5, float("nan")])
def test_coefficient_beyond_the_ends_is_refused(coefficient: float) -> None:
    with pytest.raises(convpeft.OptionError, match=r"coefficient=.* is out of range, it must lie in 0\.\.1"):
        convpeft.interpolated(tuned(), coefficient)


def test_what_is_no_copy_of_weights_is_refused() -> None:
    with pytest.raises(
        convpeft.ModelError, match=r"interpolated: method 'lora' at '0' is no copy .* Interpolate a model"
    ):
        convpeft.interpolated(convpeft.attach(network(), "lora"), 0.5)


def test_several_adapters_are_refused() -> None:
    model = convpeft.attach(tuned(), "full", name="second")
    with pytest.raises(convpeft.ModelError, match=r"several adapters are attached\. Merge or detach all but one"):
        convpeft.interpolated(model, 0.5)
