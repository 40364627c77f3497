"""Eight-bit ONNX: weights by channel, activations from the ranges that training images show."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convpeft.deployment.comparing import BATCHES
from convpeft.deployment.graphs import INPUT, note_metadata, quiet_exporter, runner, write_graph
from convpeft.errors import ModelError, one_line
from convpeft.writing import whole_file

IMAGES = 128  # to calibrate with


def quantize_onnx(source: Path, target: Path, batches: Iterable[Tensor], *, metadata: dict[str, str]) -> int:
    """Quantise a float ONNX file with onnxruntime's static QDQ form; the bytes that were written.

    Args:
        source: The float file, with its norms folded.
        target: The file to write.
        batches: Prepared training images, (batch, channels, height, width) each.
        metadata: What the new file says of itself.

    Raises:
        ModelError: If the network cannot be quantised or answers with numbers that are not finite.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        ready, made = Path(folder) / "ready.onnx", Path(folder) / "int8.onnx"
        try:
            with quiet_exporter():
                quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
                quantize_static(
                    str(ready),
                    str(made),
                    _reader(batches),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=QuantType.QInt8,
                    weight_type=QuantType.QInt8,
                )
        except Exception as error:  # onnxruntime has no error of its own
            raise ModelError(
                f"the network cannot be quantised ({one_line(error, 160)}). Export it without --quantize."
            ) from error
        graph = onnx.load(made, load_external_data=False)
        note_metadata(graph, metadata)
        with whole_file(target) as work:
            write_graph(graph, work)
            _try_batches(work, batches)
            return work.stat().st_size


def _reader(batches: Iterable[Tensor]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        """The images, one batch a call, and None at the end."""

        def __init__(self, rest: Iterator[Tensor]) -> None:
            self.rest = rest

        def get_next(self) -> Any:
            batch = next(self.rest, None)
            return None if batch is None else {INPUT: np.ascontiguousarray(batch.numpy())}

    return Reader(iter(batches))


def _try_batches(file: Path, batches: Iterable[Tensor]) -> None:
    """Run every size of batch once: eight bits round, so only the form of the answer is checked here."""
    run, images = runner(file), next(iter(batches))
    for size in BATCHES:
        logits = run(images[torch.arange(size) % len(images)])
        if len(logits) != size or not bool(torch.isfinite(logits).all()):
            raise ModelError(
                f"the quantised file does not answer {size} images with finite numbers. Leave --quantize out."
            )
