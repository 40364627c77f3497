import numpy as np
import pytest
import scipy.special
import torch
from torch import nn

from convpeft.errors import DataError, ModelError
from convpeft.evaluation import Predictions, predict_logits


def batches(sizes=(4, 4, 1), seed=0):
    """Yield batches of images; the last is short."""
    generator = torch.Generator().manual_seed(seed)
    start = 0
    for size in sizes:
        index = torch.arange(start, start + size)
        yield torch.randn(size, 3, 8, 8, generator=generator), index % 3, index
        start += size


def network():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_mean.uniform_(-1, 1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3))


class Answer(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


def test_logits_equal_the_model_in_evaluation_mode():
    model = network().train()
    predictions = predict_logits(model, batches())
    model.eval()
    with torch.no_grad():
        expected = torch.cat([model(images) for images, _, _ in batches()]).numpy()
    assert np.array_equal(predictions.logits, expected)
    assert predictions.logits.dtype == np.float32


def test_labels_and_index_come_through_in_order():
    predictions = predict_logits(network(), batches())
    assert predictions.index.tolist() == list(range(9))
    assert predictions.labels.tolist() == [number % 3 for number in range(9)]
    assert (predictions.labels.dtype, predictions.index.dtype) == (np.int64, np.int64)


def mixed_flags(model):
    model.train()
    model[1].eval()
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.promise("C15")
def test_every_training_flag_is_restored_one_by_one():
    model = network()
    before = mixed_flags(model)
    predict_logits(model, batches())
    assert {name: module.training for name, module in model.named_modules()} == before


class Stubborn(nn.Module):
    """A frozen norm that stays in evaluation mode whatever its parent says."""

    def train(self, mode=True):
        return super().train(False)

    def forward(self, images):
        return images.flatten(1)[:, :3]


@pytest.mark.promise("C15")
def test_a_flag_that_train_would_not_set_is_restored():
    model = Stubborn()
    model.training = True
    predict_logits(model, batches())
    assert model.training


@pytest.mark.promise("C15")
def test_training_flags_are_restored_after_an_error():
    model = network()
    before = mixed_flags(model)
    with pytest.raises(RuntimeError):
        predict_logits(model, [(torch.zeros(1, 5, 8, 8), torch.zeros(1), torch.zeros(1))])
    assert {name: module.training for name, module in model.named_modules()} == before


def test_no_state_of_the_model_changes():
    model = network().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    predict_logits(model, batches())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_progress_is_told_the_images_of_each_batch():
    seen = []
    predict_logits(network(), batches(), progress=seen.append)
    assert seen == [4, 4, 1]


def test_bfloat16_logits_become_float32():
    model = network().to(torch.bfloat16)
    predictions = predict_logits(model, ((x.bfloat16(), y, i) for x, y, i in batches()))
    assert predictions.logits.dtype == np.float32


def test_a_model_without_tensors_runs_on_the_cpu():
    model = Answer(lambda images: images.flatten(1)[:, :3])
    assert predict_logits(model, batches()).logits.shape == (9, 3)


def test_images_are_sent_to_the_device_asked_for():
    seen = []

    def answer(images):
        seen.append(images.device.type)
        return torch.zeros(len(images), 3)

    predict_logits(Answer(answer), batches(), device="meta")
    assert set(seen) == {"meta"}


def test_images_are_sent_to_the_device_of_the_model():
    model = Answer(lambda images: torch.full((len(images), 2), float(images.device.type == "meta")))
    model.register_buffer("anchor", torch.zeros(1, device="meta"))
    assert predict_logits(model, batches()).logits.min() == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda x: (x, x),
            r"expected a tensor of logits \(4, classes\) from the model, got tuple. Wrap the model",
        ),
        (
            lambda x: x,
            r"expected logits of shape \(4, classes\) .*got \(4, 3, 8, 8\)\. Give the model a class",
        ),
        (lambda x: x.flatten(1)[:1], r"got \(1, 192\)"),
        (
            lambda x: torch.full((len(x), 2), torch.nan),
            r"got NaN or infinity for 4 of 4 images of a batch. Check",
        ),
        (lambda x: torch.tensor([[0.0, torch.inf]] + [[0.0, 1.0]] * (len(x) - 1)), r"for 1 of 4 images"),
        (
            lambda x: x.flatten(1)[:, : len(x)],
            r"expected logits of shape \(1, 4\) from the model, got \(1, 1\)",
        ),
    ],
)
def test_unusable_answers_are_refused_in_one_line(answer, message):
    with pytest.raises(ModelError, match=message) as caught:
        predict_logits(Answer(answer), batches())
    assert "\n" not in str(caught.value)


def test_no_batches_are_refused():
    with pytest.raises(DataError, match=r"expected at least one batch of images, got none. Is the split empty?"):
        predict_logits(network(), [])


def test_probabilities_equal_scipy_softmax():
    logits = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32) * 30
    predictions = Predictions(logits, np.zeros(50, dtype=np.int64), np.arange(50))
    expected = scipy.special.softmax(logits.astype(np.float64), axis=1)
    assert np.allclose(predictions.probabilities, expected, rtol=1e-12, atol=0)


def test_probabilities_survive_huge_logits():
    predictions = Predictions(np.array([[1e30, -1e30]], dtype=np.float32), np.array([0]), np.array([0]))
    assert predictions.probabilities.tolist() == [[1.0, 0.0]]


def test_correct_marks_right_answers():
    predictions = Predictions(np.eye(3, dtype=np.float32), np.array([0, 1, 0]), np.arange(3))
    assert predictions.predicted.tolist() == [0, 1, 2]
    assert predictions.correct.tolist() == [True, True, False]
