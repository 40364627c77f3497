"""Check an adapter on a user's own network: every claim, on copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from convpeft.attachment import attach
from convpeft.checking.losses import LOSSES, STRUCTURE
from convpeft.checking.promises import PROMISES, REPEATABLE
from convpeft.checking.report import CheckReport
from convpeft.checking.subject import Subject, choose_inputs, copy_of
from convpeft.errors import ModelError, OptionError
from convpeft.injection import adapted_layers, state_of
from convpeft.slots import slots_of
from convpeft.storage import load


def check(
    model: nn.Module,
    *,
    method: str | None = None,
    adapter: str | Path | None = None,
    example: Tensor | Sequence[Tensor] | None = None,
    seed: int = 0,
) -> CheckReport:
    """Find out whether adapters do on this network what they promise, in under a minute for usual networks.

    It works on copies: the model keeps every bit and every mode. Without an example the input is random noise of the
    size the model was loaded with, or of the first usual size that it runs on.

    Args:
        model: Any network, plain or with adapters; those it has are checked.
        method: What to attach to a plain model, with its default options. Default: lora. To check other options,
            attach first.
        adapter: A saved adapter to load on a plain model instead.
        example: An input, or several for a forward of several arguments; two images or more.
        seed: Of the noise on inputs, weights and adapters.

    Returns:
        The report: `passed`, `findings`, and a table when printed.

    Raises:
        OptionError: If a method or adapter is given for a model that has one, or both are.
        ModelError: If nothing can be attached or is active, or the model cannot be copied or runs on no input.
        AdapterFileError: If the adapter cannot be loaded.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    >>> check(net).passed
    True
    """
    if method is not None and adapter is not None:
        raise OptionError("method and adapter exclude each other: the file says which method it is.")
    adapted = copy_of(model)
    if method is None and adapter is None:
        method = "lora"
    elif state_of(model) is not None:
        raise OptionError("the model has an adapter already, and that one is checked. Leave method and adapter out.")
    fresh = state_of(model) is None and adapter is None
    devices = sorted({tensor.device.index or 0 for tensor in model.parameters() if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        if adapter is not None:
            load(adapted, adapter)
        elif fresh:
            attach(adapted, method or "lora")
        return _examine(adapted, example, fresh=fresh, seed=seed)


def _examine(adapted: nn.Module, example: Tensor | Sequence[Tensor] | None, *, fresh: bool, seed: int) -> CheckReport:
    state = state_of(adapted)
    assert state is not None
    if not state.active:
        raise ModelError("no adapter is active, so there is nothing to check. Call convpeft.set_active first.")
    method = " and ".join(dict.fromkeys(record.method for record in state.names.values()))
    layers = sum(any(True for _ in slots_of(layer).children()) for _, layer in adapted_layers(adapted))
    findings = [claim.examine(adapted) for claim in STRUCTURE]
    claims = (REPEATABLE, *PROMISES, *LOSSES)
    if any(finding.status == "fail" for finding in findings):
        findings += [claim.skipped("adapters or norms are not where they were attached") for claim in claims]
        return CheckReport(method, layers, (), tuple(findings))
    subject = Subject(adapted, (), fresh=fresh, seed=seed)
    subject.inputs = choose_inputs(copy_of(subject.base), example, subject.generator())
    findings += [claim.examine(subject) for claim in claims]
    return CheckReport(method, layers, tuple(tuple(each.shape) for each in subject.inputs), tuple(findings))
