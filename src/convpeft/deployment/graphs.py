"""Turn a plain network into an ONNX graph with a free batch, and run such a file on the processor."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Generator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from convpeft.deployment.comparing import Run
from convpeft.errors import ModelError, one_line

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20
INPUT, OUTPUT = "images", "logits"


def need(*packages: str, extra: str) -> None:
    """See that the packages that an extra brings are installed.

    Raises:
        ModelError: If one is not installed, with the command that installs it.
    """
    for package in packages:
        name = package.partition(".")[0]
        try:
            found = find_spec(package) is not None
        except (ModuleNotFoundError, ValueError):
            found = False
        if not found:
            raise ModelError(f"needs the package {name}; install it with pip install 'convpeft[{extra}]'.")


def make_graph(model: nn.Module, images: Tensor, *, dynamic_size: bool = False, optimize: bool = True) -> ModelProto:
    """Export a network in evaluation mode to ONNX, with the number of images free.

    Args:
        model: A plain network on the processor; it is not changed.
        images: Inputs of the right shape, (batch, channels, height, width).
        dynamic_size: Leave height and width free too.
        optimize: Let the exporter fold constants and tidy up. Without, every tensor keeps its name and its bits.

    Raises:
        ModelError: If the network cannot be exported.
    """
    need("onnx", "onnxscript", "onnxruntime", extra="onnx")
    example = images[torch.arange(2) % len(images)].contiguous()  # a batch of one would be taken for a constant
    axes = {0: "batch"} | ({2: "height", 3: "width"} if dynamic_size else {})
    try:
        with quiet_exporter(), torch.no_grad():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=(axes,),
                opset_version=OPSET,
                optimize=optimize,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter has no error of its own that holds for all its stages
        hint = "Leave --dynamic-size out." if dynamic_size else "See where with --debug."
        raise ModelError(f"the network cannot be exported to ONNX ({one_line(error, 200)}). {hint}") from error
    if program is None:
        raise ModelError("the network cannot be exported to ONNX: the exporter returned nothing. Update torch.")
    return _without_origins(program.model_proto)


def _without_origins(graph: ModelProto) -> ModelProto:
    """Drop the exporter's notes on every node, which quote source lines and paths of this machine."""
    inside = graph.graph
    for each in (inside, *inside.node, *inside.value_info, *inside.input, *inside.output, *inside.initializer):
        each.ClearField("metadata_props")
        each.ClearField("doc_string")
    return graph


def note_metadata(graph: ModelProto, metadata: Mapping[str, str]) -> None:
    """Write texts into the file's metadata_props, and nothing of the machine that made it."""
    from onnx.helper import set_model_props

    set_model_props(graph, dict(metadata))


def write_graph(graph: ModelProto, path: Path) -> None:
    """Write a graph and its tensors as one file.

    Raises:
        ModelError: If it is larger than one ONNX file can be.
    """
    from google.protobuf.message import EncodeError

    try:
        content = graph.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise ModelError(
            f"the network does not fit into one ONNX file, which holds at most 2 GiB ({one_line(error, 80)}). "
            "Export with --to torch."
        ) from None
    path.write_bytes(content)


def session_of(file: Path | bytes, *, threads: int = 0) -> Any:
    """An onnxruntime session on the processor; threads=0 leaves their number to it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        file if isinstance(file, bytes) else str(file), options, providers=["CPUExecutionProvider"]
    )


def runner(file: Path | bytes) -> Run:
    """A file as a function from images to logits."""
    session = session_of(file)

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: np.ascontiguousarray(images.cpu().numpy())})
        return torch.from_numpy(logits).float()

    return run


@contextlib.contextmanager
def quiet_exporter() -> Generator[None]:
    """No warnings and log lines of the exporters inside the block: they speak of their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
