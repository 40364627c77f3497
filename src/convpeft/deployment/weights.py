"""The merged network as plain weights: a safetensors file with the base's own keys."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from convpeft.deployment.comparing import Difference, answers_of, check
from convpeft.deployment.onnx_merged import on_processor, plain_copy
from convpeft.errors import RunError, one_line
from convpeft.evaluation.inference import Classifier
from convpeft.fingerprints import base_tensors
from convpeft.writing import whole_file


@dataclass(frozen=True)
class ExportedWeights:
    """What was written: how far it is from PyTorch, biases that went into norms and those that did not, bytes."""

    difference: Difference
    absorbed: tuple[str, ...]
    added: tuple[str, ...]
    size: int


def export_weights(
    classifier: Classifier, path: str | Path, *, images: Tensor, notes: Mapping[str, str] | None = None
) -> ExportedWeights:
    """Write the merged weights under the base's keys, and check the file against the adapted network.

    A bias that came into being moves into the norm behind it (running_mean -= bias) where that norm is the only one to
    read the layer; other new biases stay, and are named.

    Raises:
        ModelError: If an adapter does not merge or the file answers differently; nothing is left then.
        RunError: If it cannot be written.
    """
    adapted = on_processor(classifier.model)
    expected = answers_of(adapted, images)
    before = set(base_tensors(adapted))
    plain = plain_copy(adapted)
    new = sorted(set(base_tensors(plain)) - before)
    absorbed = [name for name in new if _absorb(plain, name, images)]
    added = tuple(name for name in new if name not in absorbed)
    path = Path(path)
    try:
        with whole_file(path) as work:
            write_weights(plain, work, classifier, notes=notes)
            twin = copy.deepcopy(plain)
            twin.load_state_dict(load_file(work))
            found = check(twin, expected)
            size = work.stat().st_size
    except (OSError, SafetensorError) as error:
        why = one_line(error)
        raise RunError(f"--out {path}: cannot be written ({why}). Free space or give another name.") from None
    return ExportedWeights(found, tuple(absorbed), added, size)


def write_weights(
    model: nn.Module, path: Path, classifier: Classifier, *, notes: Mapping[str, str] | None = None
) -> int:
    """Write a plain network's tensors with class names and preprocessing; the number of tensors."""
    told = {
        "format": "pt",
        "classes": json.dumps(classifier.classes, ensure_ascii=False),
        "preprocessing": json.dumps(classifier.preprocessing.to_dict()),
        **(notes or {}),
    }
    tensors = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    safetensors.torch.save_file(tensors, path, metadata=told)
    return len(tensors)


def _absorb(model: nn.Module, name: str, images: Tensor) -> bool:
    """Move a new bias into the norm that alone reads the layer; whether there is such a norm."""
    path, _, tensor = name.rpartition(".")
    layer = model.get_submodule(path)
    bias = layer._parameters[tensor]
    norm = None if bias is None else _only_norm_behind(model, layer, images)
    if bias is None or norm is None or norm.running_mean is None:
        return False
    with torch.no_grad():
        norm.running_mean -= bias
    layer._parameters[tensor] = None
    return True


def _only_norm_behind(model: nn.Module, layer: nn.Module, images: Tensor) -> nn.modules.batchnorm._BatchNorm | None:
    """The norm that every output of the layer goes into and nothing else, as the exported graph tells; else None."""
    try:
        program = torch.export.export(model, (images[:1],))
    except Exception:  # a network that cannot be traced keeps its bias
        return None
    names = {target: name for name, target in program.graph_signature.inputs_to_parameters.items()}
    names |= {target: name for name, target in program.graph_signature.inputs_to_buffers.items()}
    paths = {module: path for path, module in model.named_modules(remove_duplicate=True)}
    places = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    weight = places.get(names.get(f"{paths[layer]}.weight", ""))
    if weight is None or len(weight.users) != 1:  # a layer that runs twice may have two norms behind it
        return None
    (made,) = weight.users
    if len(made.users) != 1 or "batch_norm" not in str(next(iter(made.users)).target):
        return None
    (normed,) = made.users
    if normed.args[0] is not made:
        return None
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
            mean = places.get(names.get(f"{paths[norm]}.running_mean", ""))
            if mean is not None and set(mean.users) == {normed}:
                return norm
    return None
