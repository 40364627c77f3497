"""What a network's features are still worth to a task: fit a new linear classifier on them (linear-probe retention)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convpeft.errors import ModelError, OptionError
from convpeft.evaluation.predicting import predict_logits
from convpeft.sites import find_head

Features = NDArray[np.float32]
_TOLERANCE = 1e-6  # of the gradient's largest entry; the loss is a mean over images


def features_of(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor, Tensor]], *, head: str = "auto"
) -> tuple[Features, NDArray[np.int64]]:
    """What goes into the classifier, and the labels.

    Args:
        model: Any model with a classifier, adapted or not; it is left as it was.
        batches: Yields images, labels (batch) and index (batch).
        head: Path of the classifier, or `auto`.

    Returns:
        Features (N, width), averaged over space where the classifier is a convolution, and labels (N,).

    Raises:
        ModelError: If the model has no classifier, or it was not run once for each batch.
    """
    path = find_head(model, head)
    if path is None:
        raise ModelError("features_of: no classifier is found in this model. Name it with head=PATH.")
    seen: list[Features] = []

    def keep(_: nn.Module, given: tuple[Any, ...]) -> None:
        given_features = given[0].detach().float()
        seen.append((given_features.flatten(2).mean(2) if given_features.ndim > 2 else given_features).cpu().numpy())

    handle = model.get_submodule(path).register_forward_pre_hook(keep)
    try:
        labels = predict_logits(model, batches).labels
    finally:
        handle.remove()
    features = np.concatenate(seen) if seen else np.empty((0, 0), dtype=np.float32)
    if len(features) != len(labels):
        raise ModelError(
            f"features_of: the classifier {path!r} saw {len(features)} rows for {len(labels)} images. "
            "Name the layer that sees each image once with head=PATH."
        )
    return features, labels


def probe_accuracy(
    features: Features,
    labels: NDArray[np.int64],
    test_features: Features,
    test_labels: NDArray[np.int64],
    *,
    decay: float = 1e-3,
    steps: int = 200,
) -> float:
    """Accuracy of a linear classifier that is fitted on some features and measured on others.

    loss = mean over images of cross-entropy + decay / 2 * |weight|^2, on features of mean 0 and deviation 1

    The loss is convex and minimised in float64 from zero, so the same features give the same accuracy.

    Args:
        features: To fit on, (N, width).
        labels: Their classes, (N,), integers from 0.
        test_features: To measure on, (M, width).
        test_labels: Their classes, (M,).
        decay: Of the weight, > 0; the loss has a single minimum then.
        steps: At most so many of L-BFGS.

    Raises:
        OptionError: If lengths or widths do not go together, or the decay is not positive.
    """
    if (
        features.ndim != 2
        or test_features.ndim != 2
        or features.shape[1] != test_features.shape[1]
        or len(features) != len(labels)
        or len(test_features) != len(test_labels)
        or not len(features)
        or not len(test_features)
    ):
        raise OptionError(
            f"probe_accuracy: expected features (N, width) with N labels twice, got shapes {features.shape} with "
            f"{len(labels)} labels and {test_features.shape} with {len(test_labels)}. Take both from features_of."
        )
    if not decay > 0:
        raise OptionError(f"probe_accuracy: decay={decay} is not positive. Without decay the fit has no single answer.")
    fitted, measured = (torch.from_numpy(np.asarray(each, dtype=np.float64)) for each in (features, test_features))
    mean, deviation = fitted.mean(0), fitted.std(0, correction=0).clamp_min(1e-8)
    fitted, measured = (fitted - mean) / deviation, (measured - mean) / deviation
    wanted = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    weight = torch.zeros(int(labels.max()) + 1, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(weight), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, tolerance_grad=_TOLERANCE, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(nn.functional.linear(fitted, weight, bias), wanted)
        value = value + decay / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        answers = nn.functional.linear(measured, weight, bias).argmax(1).numpy()
    return float(np.mean(answers == test_labels))
