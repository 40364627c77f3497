"""The merged network as an ExecuTorch program for XNNPACK, float or eight-bit: what phones run."""

# The extra executorch brings what is missing here.
# pyright: reportMissingImports=false

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from convpeft.deployment.comparing import BATCHES, Difference, Run, answers_of, check, difference
from convpeft.deployment.graphs import need, quiet_exporter
from convpeft.deployment.onnx_merged import describe, on_processor, plain_copy
from convpeft.errors import ModelError, one_line
from convpeft.evaluation.inference import Classifier
from convpeft.writing import whole_file

LARGEST_BATCH = 8  # a program sets its memory aside beforehand


@dataclass(frozen=True)
class ExportedProgram:
    """What was written: how far it is from PyTorch, and its bytes."""

    difference: Difference
    size: int


class ProgramNetwork(nn.Module):
    """A loaded program that is called as a network."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes), for as many images as there are, eight at a time."""
        return torch.cat([self.run(part) for part in images.split(LARGEST_BATCH)])


def export_executorch(
    classifier: Classifier, path: str | Path, *, images: Tensor, calibration: Iterable[Tensor] | None = None
) -> ExportedProgram:
    """Write the merged network as a .pte file for batches of 1 to 8, and check it against PyTorch.

    An eight-bit program rounds: it must run and answer with finite numbers; how far it is from PyTorch is returned.

    Args:
        classifier: The adapted network, its preprocessing and class names; it is not changed.
        path: The file; one that is there is replaced.
        images: Prepared images to check with.
        calibration: Prepared training images by batch, for eight bits. Default: float.

    Raises:
        ModelError: If an adapter does not merge, the network cannot be exported, or the file answers differently;
            nothing is left then.
    """
    need("executorch.exir", "torchao", extra="executorch")
    adapted = on_processor(classifier.model)
    expected = answers_of(adapted, images)
    try:
        with quiet_exporter():
            content = _program(plain_copy(adapted), images, calibration, json.dumps(describe(classifier, "executorch")))
    except ModelError:
        raise
    except Exception as error:  # the exporter has no error of its own
        raise ModelError(
            f"the network cannot be exported to ExecuTorch ({one_line(error, 200)}). Take --to onnx."
        ) from error
    with whole_file(Path(path)) as work:
        work.write_bytes(content)
        run = load_program(work)
        found = check(run, expected) if calibration is None else difference(run, expected)
        if not found.absolute < float("inf"):
            raise ModelError("the ExecuTorch program answers with numbers that are not finite. Leave --quantize out.")
        return ExportedProgram(found, work.stat().st_size)


def load_program(path: Path) -> Run:
    """A program as a function from 1 to 8 images to logits."""
    need("executorch.runtime", extra="executorch")
    from executorch.runtime import Runtime

    return _Loaded(Runtime.get(), path.read_bytes())


class _Loaded:
    """A program's method, with the program and the bytes that it reads from and does not keep alive."""

    def __init__(self, runtime: Any, content: bytes) -> None:
        self.content = content
        self.program = runtime.load_program(content)
        self.method = self.program.load_method("forward")

    def __call__(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.method.execute([images.contiguous()])[0]).clone().float()


def _program(model: nn.Module, images: Tensor, calibration: Iterable[Tensor] | None, told: str) -> bytes:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    example = (images[torch.arange(max(BATCHES[1], 2)) % len(images)].contiguous(),)
    shapes = ({0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)},)
    program = torch.export.export(model, example, dynamic_shapes=shapes)
    if calibration is not None:
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        observed = prepare_pt2e(program.module(), quantizer)
        with torch.no_grad():
            for batch in calibration:
                for part in batch.split(LARGEST_BATCH):
                    observed(part.contiguous())
        program = torch.export.export(convert_pt2e(observed), example, dynamic_shapes=shapes)
    lowered = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], constant_methods={"convpeft_metadata": told}
    )
    return lowered.to_executorch().buffer
