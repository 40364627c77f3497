"""Inputs of likely sizes: the known size first, the modes kept, a line where nothing goes through."""

import pytest
import torch
from torch import Tensor, nn

import convpeft
from convpeft.trials import try_inputs


def tried(model: nn.Module, *, refuse: int = 0) -> list[tuple[int, ...]]:
    """Shapes that are tried when the first so many are refused."""
    shapes: list[tuple[int, ...]] = []

    def run(blank: Tensor) -> Tensor:
        shapes.append(tuple(blank.shape))
        if len(shapes) <= refuse:
            raise RuntimeError("too\nlarge")
        return blank

    try_inputs(model, run, batch=2, task="nothing can be tried", remedy="Do something else.")
    return shapes


def test_size_that_the_model_was_loaded_with_comes_first() -> None:
    assert tried(convpeft.load_model("small-cnn")) == [(2, 1, 28, 28)]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 2, 3), (2, 4, 16000)),
        (nn.Conv2d(4, 2, 3), (2, 4, 224, 224)),
        (nn.ConvTranspose2d(4, 2, 3), (2, 4, 224, 224)),
        (nn.Conv3d(4, 2, 3), (2, 4, 16, 16, 16)),
        (nn.Linear(4, 2), (2, 4)),
    ],
)
def test_input_fits_the_first_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    assert tried(nn.Sequential(layer)) == [shape]


def test_sizes_that_are_refused_are_passed_over() -> None:
    assert tried(nn.Conv2d(3, 4, 3), refuse=2) == [(2, 3, 224, 224), (2, 3, 32, 32), (2, 3, 64, 64)]


def test_input_has_the_precision_of_the_model() -> None:
    model = nn.Conv2d(3, 4, 3).double()
    assert try_inputs(model, lambda blank: blank.dtype, batch=1, task="", remedy="") == torch.float64


def test_modes_are_kept_and_evaluation_is_tried() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout().eval())
    assert (
        try_inputs(model, lambda _: [m.training for m in model.modules()], batch=1, task="", remedy="") == [False] * 3
    )
    assert [module.training for module in model.modules()] == [True, True, False]


def test_refusal_names_the_first_error_and_the_remedy() -> None:
    with pytest.raises(
        convpeft.ModelError, match=r"^nothing can be tried, because .* \(too large\)\. Do something else"
    ):
        tried(nn.Conv2d(3, 4, 3), refuse=100)


def test_model_without_layers_says_so() -> None:
    with pytest.raises(convpeft.ModelError, match="neither a convolution nor a linear layer"):
        tried(nn.ReLU())
