"""The adapted network as one ONNX file: merged, norms folded, class names and preprocessing inside."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from convpeft._version import __version__
from convpeft.deployment.comparing import BATCHES, Difference, answers_of, check
from convpeft.deployment.graphs import make_graph, note_metadata, runner, write_graph
from convpeft.deployment.onnx_base import in_row_major_order
from convpeft.errors import ModelError, one_line
from convpeft.evaluation.inference import Classifier
from convpeft.injection import state_of
from convpeft.merging import merged
from convpeft.writing import whole_file

if TYPE_CHECKING:
    from onnx import ModelProto

_OTHER_SIZE = 1.25  # of the image's sides, to try a file whose size is free


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        difference: How far the file is from PyTorch.
        folded: Norms that are now part of a convolution.
        kept: Norms that stay an operation of their own.
        size: Bytes of the file.
    """

    difference: Difference
    folded: int
    kept: int
    size: int


def export_onnx(
    classifier: Classifier,
    path: str | Path,
    *,
    images: Tensor,
    dynamic_size: bool = False,
    notes: Mapping[str, str] | None = None,
) -> Exported:
    """Write the merged network as one ONNX file, and check it against the adapted network that it came from.

    Args:
        classifier: The adapted network, its preprocessing and class names; it is not changed.
        path: The file; one that is there is replaced.
        images: Prepared images to check with, (batch, channels, height, width).
        dynamic_size: Leave height and width free, not the number of images alone.
        notes: More metadata, by name without "convpeft.".

    Raises:
        ModelError: If an adapter does not merge, the network cannot be exported, or the file answers differently;
            nothing is left then.
    """
    adapted = on_processor(classifier.model)
    expected = answers_of(adapted, images)
    if dynamic_size:
        expected += _at_another_size(adapted, images)
    plain = plain_copy(adapted)
    graph = make_graph(plain, images, dynamic_size=dynamic_size)
    note_metadata(graph, describe(classifier, "merged") | {f"convpeft.{k}": v for k, v in (notes or {}).items()})
    kept = norms_in(graph)
    with whole_file(Path(path)) as work:
        write_graph(graph, work)
        found = check(runner(work), expected)
        size = work.stat().st_size
    norms = sum(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in plain.modules())
    return Exported(found, max(norms - kept, 0), kept, size)


def describe(classifier: Classifier, kind: str) -> dict[str, str]:
    """What a file says of itself: enough to prepare an image and to name the answer."""
    return {
        "convpeft.version": __version__,
        "convpeft.kind": kind,
        "convpeft.classes": json.dumps(classifier.classes),
        "convpeft.preprocessing": json.dumps(classifier.preprocessing.to_dict()),
    }


def on_processor(model: nn.Module) -> nn.Module:
    """A copy on the processor, in evaluation mode and row-major order, adapters and all."""
    return in_row_major_order(copy.deepcopy(model).eval().cpu())


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy with its adapters merged into its weights.

    Raises:
        ModelError: If a method does not merge.
    """
    return copy.deepcopy(model) if state_of(model) is None else merged(model)


def norms_in(graph: ModelProto) -> int:
    """How many batch norms are operations of their own."""
    return sum(node.op_type == "BatchNormalization" for node in graph.graph.node)


def _at_another_size(model: nn.Module, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What the model answers to an image of other sides, with that image."""
    sides = [int(side * _OTHER_SIZE) for side in images.shape[2:]]
    resized = nn.functional.interpolate(images[:1], size=sides, mode="bilinear")
    try:
        return answers_of(model, resized, batches=BATCHES[:1])
    except RuntimeError as error:
        raise ModelError(
            f"the network itself does not run on images of other sizes ({one_line(error, 120)}). "
            "Leave --dynamic-size out."
        ) from None
