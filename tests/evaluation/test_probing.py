"""Linear-probe retention: the features are what the classifier gets, and the fit is scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

import convpeft
from contract.networks import randomise
from convpeft.errors import ModelError, OptionError
from convpeft.evaluation import features_of, probe_accuracy


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def batches() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    images = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(10) % 4
    return [(images[part], labels[part], torch.arange(10)[part]) for part in (slice(0, 7), slice(7, 10))]


def clouds(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three overlapping clouds of very different scales."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    centres = np.random.default_rng(9).normal(size=(3, 5))
    return ((centres[labels] + rng.normal(size=(count, 5))) * 10.0 ** np.arange(5)).astype(np.float32), labels


def test_features_are_what_goes_into_the_head():
    model = network().eval()
    features, labels = features_of(model, batches())
    with torch.no_grad():
        expected = torch.cat([model[:4](images) for images, _, _ in batches()]).numpy()
    np.testing.assert_array_equal(features, expected)
    assert labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_features_of_an_adapted_model_are_the_adapted_ones_and_disabled_ones_the_base_s():
    base, _ = features_of(network(), batches())
    model = randomise(convpeft.attach(network(), "lora", num_classes=3))
    assert np.abs(features_of(model, batches())[0] - base).max() > 1e-3
    with convpeft.disabled(model):
        np.testing.assert_array_equal(features_of(model, batches())[0], base)


def test_convolution_as_a_head_gives_means_over_space():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    features, _ = features_of(model.eval(), batches(), head="2")
    with torch.no_grad():
        expected = torch.cat([model[:2](images).mean((2, 3)) for images, _, _ in batches()]).numpy()
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-7)


def test_model_is_left_without_hooks_and_in_its_mode():
    model = network().train()
    features_of(model, batches())
    assert model.training
    assert not model[4]._forward_pre_hooks


def test_head_that_sees_an_image_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = network()[:4], nn.Linear(6, 4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(images)) + self.head(self.body(-images))

    with pytest.raises(ModelError, match=r"saw 20 rows for 10 images\. Name the layer that sees each image once"):
        features_of(Twice(), batches())


def test_model_without_a_classifier_is_refused():
    with pytest.raises(ModelError, match=r"no classifier is found in this model\. Name it with head=PATH"):
        features_of(nn.Sequential(nn.Conv2d(3, 4, 3)), batches())


@pytest.mark.parametrize("decay", [1e-3, 1e-1])
def test_accuracy_is_that_of_scikit_learn(decay: float):
    (features, labels), (other, truth) = clouds(300, 0), clouds(500, 1)
    scaler = StandardScaler().fit(features)
    # scikit-learn weighs the sum of losses with C against half the squared weight
    theirs = LogisticRegression(C=1 / (decay * len(labels)), max_iter=1000, tol=1e-8)
    theirs.fit(scaler.transform(features), labels)
    expected = theirs.score(scaler.transform(other), truth)
    assert probe_accuracy(features, labels, other, truth, decay=decay) == pytest.approx(expected, abs=0.0021)
    assert 0.5 < expected < 0.99


def test_same_features_give_the_same_accuracy():
    found = {probe_accuracy(*clouds(100, 0), *clouds(100, 1)) for _ in range(3)}
    assert len(found) == 1


def test_constant_feature_does_no_harm():
    (features, labels), (other, truth) = clouds(100, 0), clouds(100, 1)
    wide = [np.concatenate([x, np.full((100, 1), 7, dtype=np.float32)], axis=1) for x in (features, other)]
    plain = probe_accuracy(features, labels, other, truth)
    assert probe_accuracy(wide[0], labels, wide[1], truth) == pytest.approx(plain, abs=0.011)


def test_features_that_do_not_go_together_are_refused():
    features, labels = clouds(10, 0)
    with pytest.raises(OptionError, match=r"expected features \(N, width\) with N labels twice, .* Take both from"):
        probe_accuracy(features, labels, features[:, :3], labels)


def test_no_decay_is_refused():
    features, labels = clouds(10, 0)
    with pytest.raises(OptionError, match=r"decay=0 is not positive\. Without decay the fit has no single answer"):
        probe_accuracy(features, labels, features, labels, decay=0)
