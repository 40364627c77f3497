"""A fresh classifier for new classes; the old one stays underneath."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from convpeft.adapters import Adapter
from convpeft.sites import Site


class FreshHead(Adapter):
    """Replace the classifier's weight and bias by new ones for `num_classes` classes.

    weight (num_classes, in, *ones) and bias (num_classes): uniform in +-1/sqrt(in), as torch's own layers start.

    The one Adapter whose result has another shape than its input: the number of classes is what it changes.
    """

    def __init__(self, site: Site, *, num_classes: int) -> None:
        super().__init__(site)
        self.weight = nn.Parameter(torch.empty(num_classes, *site.shape[1:]))
        self.bias = nn.Parameter(torch.empty(num_classes))

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Draw new values."""
        bound = 1 / math.sqrt(self.site.fan_in)
        with torch.no_grad():
            self.weight.uniform_(-bound, bound, generator=generator)
            self.bias.uniform_(-bound, bound, generator=generator)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Ignore the old classifier."""
        return self.weight, self.bias


def warn_of_other_count(model: nn.Module, num_classes: int) -> None:
    """Say so where a model of transformers will still count the classes of its old head in its own loss."""
    config: Any = getattr(model, "config", None)
    told: Any = getattr(config, "num_labels", num_classes)
    if isinstance(told, int) and told != num_classes:
        warnings.warn(
            f"the new head has {num_classes} classes, and model.config.num_labels is {told}: the model's own loss "
            f"(labels=...) fails or is wrong. Set model.config.num_labels = {num_classes} before attaching.",
            stacklevel=3,
        )
