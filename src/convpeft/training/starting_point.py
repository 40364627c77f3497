"""Stay near the start: decay the trained weights towards those of the base, not towards zero (L2-SP)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convpeft.adapters import Adapter
from convpeft.attachment import require_state
from convpeft.composing import effective
from convpeft.errors import ModelError
from convpeft.heads import FreshHead
from convpeft.injection import adapted_layers
from convpeft.slots import slots_of


def l2sp_loss(model: nn.Module) -> Tensor:
    r"""Half the squared distance of the effective weights from where they started.

    loss = 1/2 sum over adapted layers of |W - W0|^2 + |b - b0|^2

    W, b: what the active adapters make of a layer | W0, b0: the same without the adapter that is trained

    For `full` these are the trained copies and the pretrained weights, norms included where they are trained; for a
    method that adds to the weights it is the size of what it adds. A fresh head has no start and is left out, and so
    are paths beside a layer.

    Args:
        model: A model with adapters, of which the one attached last is trained.

    Returns:
        The loss, a scalar, to be added to that of the new task, times a strength.

    Raises:
        ModelError: If nothing that is trained has a start in the base.

    Source:
        Li, Grandvalet, Davoine, Explicit Inductive Bias for Transfer Learning with Convolutional Networks, ICML 2018,
        arXiv 1802.01483, equation 4 with alpha as the strength. Differs: the second term, a decay of new layers
        towards zero, is left to the optimiser's own weight decay, which acts on the other weights too unless it is
        0; and AdamW divides this gradient, as every gradient, by its running size.
    """
    state = require_state(model)
    trained = state.training or ""
    before = tuple(name for name in state.active if name != trained)
    terms: list[Tensor] = []
    for _, layer in adapted_layers(model):
        parts = [part for _, part in slots_of(layer).parts(trained) if isinstance(part, Adapter)]
        if any(isinstance(part, FreshHead) for part in parts):
            continue
        for tensor in dict.fromkeys(part.site.tensor for part in parts):
            now = effective(layer, tensor, settled=True)
            with torch.no_grad():
                start = effective(layer, tensor, before, settled=True)
            terms.append(_squared(now[0], start[0]))
            if now[1] is not None:
                terms.append(_squared(now[1], start[1]))
    if not terms:
        raise ModelError(
            "train.objective='l2-sp': the adapter trains no weight of the base, so there is no start to stay near. "
            "Choose a method that does, such as full, or another objective."
        )
    return torch.stack(terms).sum() / 2


def _squared(now: Tensor, start: Tensor | None) -> Tensor:
    """The squared distance; a bias that came into being started at zero."""
    return (now if start is None else now - start).float().square().sum()
