"""Checkpoints of a run: adapter, optimiser and random state, without pickle, each written whole or not at all."""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from convpeft.errors import RunError, one_line
from convpeft.injection import adapted_layers
from convpeft.slots import slots_of
from convpeft.training.processes import count_processes
from convpeft.writing import whole_directory

_TENSORS = "state.safetensors"
_FACTS = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """One state of a run: tensors by name, and plain facts."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    damaged: Path | None = None  # the newer checkpoint that could not be read, so that this one was


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of every attached adapter, by the layer's path and its own name; training-only buffers too."""
    return {
        f"{path}:{key}": value.detach()
        for path, layer in adapted_layers(model)
        for key, value in itertools.chain(slots_of(layer).named_parameters(), slots_of(layer).named_buffers())
    }


def restore_adapter(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Write saved adapter tensors back, in place.

    Raises:
        RunError: If names or shapes are not those of this model.
    """
    own = adapter_tensors(model)
    if _forms(own) != _forms(tensors):
        raise RunError("the checkpoint was made with other layers. Resume with the run's own recipe.")
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(tensors[key])


def _forms(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {key: (value.shape, value.dtype) for key, value in tensors.items()}


def capture(model: nn.Module, optimizer: torch.optim.Optimizer, facts: dict[str, Any]) -> Checkpoint:
    """Collect the state of a run."""
    tensors = {f"adapter/{key}": value for key, value in adapter_tensors(model).items()}
    scalars: dict[str, Any] = {}
    for index, state in cast(dict[int, dict[str, Any]], optimizer.state_dict()["state"]).items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            else:
                scalars[f"{index}/{key}"] = value
    for index, parameter in enumerate(_parameters(optimizer)):
        if parameter.grad is not None:  # between the batches of a step
            tensors[f"gradient/{index}"] = parameter.grad
    tensors["random/torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    plain = {key: value.detach().to("cpu").contiguous().clone() for key, value in tensors.items()}
    return Checkpoint(plain, facts | {"optimizer": scalars, "surroundings": surroundings()})


def surroundings() -> dict[str, str]:
    """What the last bits of a training depend on beside its recipe."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "device": device,
        "processes": str(count_processes()),
    }


def reinstate(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a state back and return its facts.

    Raises:
        RunError: If it does not fit the model or the optimiser.
    """
    try:
        return _reinstate(checkpoint, model, optimizer)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError, UserWarning) as error:
        why = one_line(error, 200)
        raise RunError(f"the checkpoint does not fit the run ({why}). Start the run anew.") from None


def _reinstate(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    prefixed = checkpoint.tensors
    restore_adapter(model, {k.removeprefix("adapter/"): v for k, v in prefixed.items() if k.startswith("adapter/")})
    states: dict[int, dict[str, Any]] = {}
    for key, value in prefixed.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/", 2)
            states.setdefault(int(index), {})[name] = value
    for key, value in checkpoint.facts["optimizer"].items():
        index, name = key.split("/", 1)
        states.setdefault(int(index), {})[name] = value
    current = optimizer.state_dict()
    optimizer.load_state_dict({"state": states, "param_groups": current["param_groups"]})
    for index, parameter in enumerate(_parameters(optimizer)):
        gradient = prefixed.get(f"gradient/{index}")
        parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)
    torch.set_rng_state(prefixed["random/torch"])
    if torch.cuda.is_available() and "random/cuda" in prefixed:
        torch.cuda.set_rng_state(prefixed["random/cuda"])
    return checkpoint.facts


def write_checkpoint(checkpoint: Checkpoint, directory: Path) -> None:
    """Write a checkpoint; the one before is kept beside it as `NAME.previous`.

    Raises:
        RunError: If it cannot be written.
    """
    try:
        with whole_directory(directory, keep_as=_previous(directory)) as work:
            save_file(checkpoint.tensors, work / _TENSORS)
            digest = _digest(work / _TENSORS, checkpoint.facts)
            (work / _FACTS).write_text(json.dumps(checkpoint.facts | {"digest": digest}), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise RunError(f"{directory}: cannot write the checkpoint ({error}). Free space and resume.") from None


def read_checkpoint(directory: Path) -> Checkpoint | None:
    """The checkpoint, or the previous one where it is missing or damaged; None where there is neither.

    The previous one names the damaged one, so that whoever goes on with it can say so.

    Raises:
        RunError: If there are checkpoints and none of them is whole.
    """
    found = [each for each in (directory, _previous(directory)) if each.is_dir()]
    for each in found:
        try:
            facts = json.loads((each / _FACTS).read_text(encoding="utf-8"))
            if facts.pop("digest") == _digest(each / _TENSORS, facts):
                return Checkpoint(load_file(each / _TENSORS), facts, None if each == found[0] else found[0])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError):
            continue
    if found:
        raise RunError(f"{directory}: neither the checkpoint nor the previous one is whole. Start the run anew.")
    return None


def discard_checkpoint(directory: Path) -> None:
    """Remove a damaged checkpoint, so that the next one does not push out the good one before it."""
    shutil.rmtree(directory, ignore_errors=True)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _previous(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.previous")


def _digest(tensors: Path, facts: dict[str, Any]) -> str:
    """Of both files, so that no flipped bit goes unseen."""
    plain = json.dumps(facts, sort_keys=True).encode()
    return hashlib.sha256(hashlib.sha256(plain).digest() + tensors.read_bytes()).hexdigest()
