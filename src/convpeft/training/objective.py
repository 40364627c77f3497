"""Learning without forgetting: keep what the base says of the new images."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from convpeft.attachment import disabled, old_head


def lwf_loss(model: nn.Module, images: Tensor, *, temperature: float = 2.0) -> Tensor:
    """How far the old classifier on the adapted features is from the base, on images of the new task.

    loss = - mean over images of sum_c p_c log q_c,  p = softmax(base / temperature), q = softmax(adapted / temperature)

    The base runs in evaluation and without gradients; where no new head was put on, its own outputs are kept. Costs
    two more forward passes and a backward pass.

    Args:
        model: A model with adapters.
        images: Batch (batch, channels, height, width).
        temperature: Softens both distributions, > 0.

    Returns:
        The loss, a scalar, to be added to that of the new task.

    Source:
        Li, Hoiem, Learning without Forgetting, 2016, arXiv 1606.09282, equations 2 and 3. Differs: the base's answers
        are computed batch by batch, so that augmented images have their own; any adapter takes the place of the full
        network, and there is no warm-up of the head alone.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), disabled(model):
            before = logits_of(model(images)).float()
    finally:
        for module, flag in training.items():
            module.training = flag
    with old_head(model):
        after = logits_of(model(images)).float()
    kept = nn.functional.softmax(before / temperature, dim=1)
    return nn.functional.cross_entropy(after / temperature, kept)


def logits_of(answer: Any) -> Tensor:
    """The main logits; networks with auxiliary classifiers answer with several in train mode."""
    if isinstance(answer, Tensor):
        return answer
    return cast(Tensor, answer.logits if hasattr(answer, "logits") else answer[0])
