"""The base as an ONNX file whose tensors have the names and the bits of its state_dict, ready to be patched."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from convpeft._version import __version__
from convpeft.attachment import detach
from convpeft.deployment.comparing import Difference, answers_of, check
from convpeft.deployment.graphs import make_graph, note_metadata, runner, write_graph
from convpeft.errors import ModelError
from convpeft.fingerprints import base_tensors, fingerprint
from convpeft.injection import state_of
from convpeft.models import ModelSource, Preprocessing, preprocessing_of, source_of
from convpeft.writing import whole_file

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto


def export_base(
    model: nn.Module,
    path: str | Path,
    *,
    images: Tensor,
    preprocessing: Preprocessing | None = None,
    source: ModelSource | None = None,
    dynamic_size: bool = False,
) -> Difference:
    """Write the base, adapters off and under its own head, as one ONNX file, and check it against PyTorch.

    Norms are not folded and constants not computed ahead. Every tensor of `fingerprints.base_tensors` is an initializer
    under its `state_dict` key with the same bits and shape, also where the graph does not use it.

    Args:
        model: A network, with or without adapters; it is not changed.
        path: The file; one that is there is replaced.
        images: Prepared images to check with, (batch, channels, height, width).
        preprocessing: How they were prepared. Default: what `load_model` noted on the model.
        source: Where the base comes from. Default: what `load_model` noted on the model.
        dynamic_size: Leave height and width free, not the number of images alone.

    Returns:
        How far the file is from PyTorch.

    Raises:
        ModelError: If the network cannot be exported or the file answers differently; nothing is left then.
    """
    base = bare_base(model)
    graph = make_graph(base, images, dynamic_size=dynamic_size, optimize=False)
    drop_zero_biases(graph)
    keep_tensors(graph, base_tensors(base))
    preprocessing = preprocessing or preprocessing_of(model)
    source = source or source_of(model)
    metadata = {
        "convpeft.version": __version__,
        "convpeft.kind": "base",
        "convpeft.fingerprint": fingerprint(base)[0],
        "convpeft.preprocessing": json.dumps(None if preprocessing is None else preprocessing.to_dict()),
        "convpeft.source": json.dumps(None if source is None else source.to_dict()),
    }
    note_metadata(graph, metadata)
    with whole_file(Path(path)) as work:
        write_graph(graph, work)
        return check(runner(work), answers_of(base, images))


def bare_base(model: nn.Module) -> nn.Module:
    """A copy on the processor without adapters, in evaluation mode and row-major order; its values are the same."""
    twin = copy.deepcopy(model)
    if state_of(twin) is not None:
        detach(twin)
    return in_row_major_order(twin.eval().cpu())


def in_row_major_order(model: nn.Module) -> nn.Module:
    """The same model with its tensors laid out in row-major order, in place."""
    return model.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]  # torch's stub lacks it


def drop_zero_biases(graph: ModelProto) -> None:
    """Leave out the biases of zeros that the exporter computes for convolutions without one.

    A runtime does not see that they are constant, and then folds no norm: a MobileNet takes more than twice as long.
    """
    nodes = graph.graph.node
    made_by = {name: node for node in nodes for name in node.output}
    for node in nodes:
        if node.op_type in ("Conv", "ConvTranspose") and len(node.input) == 3 and _is_zero(node.input[2], made_by):
            del node.input[2:]
    wanted = {each.name for each in graph.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(nodes):  # what nothing reads any more goes
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
            wanted.update(each for part in node.attribute for inner in part.g.node for each in inner.input)
    del nodes[:]
    nodes.extend(reversed(kept))


def _is_zero(name: str, made_by: dict[str, NodeProto]) -> bool:
    """Whether a tensor is one zero, made larger."""
    from onnx import numpy_helper

    node = made_by.get(name)
    if node is not None and node.op_type in ("Expand", "CastLike", "Cast"):
        return _is_zero(node.input[0], made_by)
    value = next((each for each in node.attribute if each.name == "value"), None) if node is not None else None
    return value is not None and not numpy_helper.to_array(value.t).any()


def keep_tensors(graph: ModelProto, tensors: dict[str, Tensor]) -> None:
    """Add the tensors that the exporter has left out, and see that it changed none of the others.

    Raises:
        ModelError: If an initializer has a tensor's name and not its shape and bits.
    """
    found = {each.name: each for each in graph.graph.initializer}
    for name, tensor in tensors.items():
        wanted = _initializer(name, tensor)
        if name not in found:
            graph.graph.initializer.append(wanted)
        elif not _same(found[name], wanted):
            raise ModelError(
                f"tensor {name!r} of the base would not be kept as it is in the ONNX file, so it could not be patched. "
                "Export without --base."
            )


def _initializer(name: str, tensor: Tensor) -> TensorProto:
    import onnx_ir
    from onnx_ir.tensor_adapters import TorchTensor

    return onnx_ir.to_proto(TorchTensor(tensor.detach().contiguous(), name=name))


def _same(one: TensorProto, other: TensorProto) -> bool:
    from onnx import numpy_helper

    alike = one.data_type == other.data_type and list(one.dims) == list(other.dims)
    return alike and numpy_helper.to_array(one).tobytes() == numpy_helper.to_array(other).tobytes()
