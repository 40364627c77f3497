"""An exported ONNX file as a classifier: its network, class names and preprocessing, all from the one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from convpeft.deployment.graphs import INPUT, OUTPUT, need, session_of
from convpeft.deployment.onnx_wire import NotOnnx, has_outside_data
from convpeft.errors import ModelError, one_line
from convpeft.evaluation.inference import Classifier
from convpeft.models import Preprocessing

LARGEST = 2**31  # bytes, as protobuf's own limit
_REMEDY = "Give a file that `convpeft export` has written."


class OnnxNetwork(nn.Module):
    """An onnxruntime session that is called as a network, on the processor."""

    def __init__(self, session: Any, name: str) -> None:
        super().__init__()
        self.session, self.name = session, name

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        try:
            (logits,) = self.session.run([OUTPUT], {INPUT: np.ascontiguousarray(images.numpy())})
        except Exception as error:  # onnxruntime has no error of its own
            raise ModelError(
                f"{self.name}: cannot be run on these images ({one_line(error, 160)}). {_REMEDY}"
            ) from None
        return torch.from_numpy(np.asarray(logits, dtype=np.float32))


def load_onnx(path: str | Path) -> Classifier:
    """Read an exported file: nothing but this file is opened, and it must tell its classes and preprocessing.

    Args:
        path: What `convpeft export --to onnx` has written.

    Raises:
        ModelError: If it cannot be read, keeps tensors in other files, is a base, or tells no classes or preprocessing.
    """
    need("onnxruntime", extra="onnx")
    path = Path(path)
    content = _read(path)
    try:
        session = session_of(content)
        metadata = dict(session.get_modelmeta().custom_metadata_map)
        inputs, outputs = session.get_inputs(), session.get_outputs()
    except Exception as error:  # onnxruntime has no error of its own
        raise ModelError(f"{path}: onnxruntime does not take it ({one_line(error, 160)}). {_REMEDY}") from None
    if [each.name for each in inputs] != [INPUT] or OUTPUT not in [each.name for each in outputs]:
        raise ModelError(f"{path}: expected one input {INPUT!r} and an output {OUTPUT!r}. {_REMEDY}")
    if metadata.get("convpeft.kind") == "base":
        raise ModelError(
            f"{path}: is a base to be patched, which has no classes. Give what `convpeft patch` makes of it."
        )
    classes = _classes(metadata, path)
    preprocessing = Preprocessing.from_dict(_json(metadata, "preprocessing", path), where=f"{path}: preprocessing")
    return Classifier(OnnxNetwork(session, str(path)).eval(), preprocessing, classes)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST:
            raise ModelError(f"{path}: is larger than an ONNX file can be. {_REMEDY}")
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error}). {_REMEDY}") from None
    try:
        outside = has_outside_data(content)
    except NotOnnx as error:
        raise ModelError(f"{path}: {error}, or is damaged. {_REMEDY}") from None
    if outside:
        raise ModelError(f"{path}: has tensors in other files, which are never opened. {_REMEDY}")
    return content


def _json(metadata: dict[str, str], name: str, path: Path) -> object:
    text = metadata.get(f"convpeft.{name}")
    if text is None:
        raise ModelError(f"{path}: tells no {name} in its metadata. {_REMEDY}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its {name} cannot be read ({one_line(error, 80)}). {_REMEDY}") from None


def _classes(metadata: dict[str, str], path: Path) -> tuple[str, ...]:
    value = _json(metadata, "classes", path)
    names = cast("list[object]", value) if isinstance(value, list) else []
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ModelError(f"{path}: its classes are no list of different names. {_REMEDY}")
    return tuple(cast("list[str]", names))
