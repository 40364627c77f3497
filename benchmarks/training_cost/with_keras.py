"""Keras 3 on its torch backend: `enable_lora` on every Conv2D, norms with `trainable = False`, `train_on_batch`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import torch
from keras_networks import build
from plan import LEARNING_RATE, MODES, WEIGHT_DECAY, Cell
from torch import Tensor
from trainee import Call, Trainee, batch_of


class _Trainee(Trainee):
    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._model, self.note = build(cell)
        if MODES[cell.mode].method == "lora":
            self.note += _enable_lora(self._model, cell.rank)
        self._model.compile(
            optimizer=keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=False,
        )
        images, self._labels = batch_of(cell)
        self._images = _laid_out(images, cell)

    def forward(self) -> Any:
        outputs = self._model(self._images, training=True)
        return self._model.compute_loss(self._images, self._labels, outputs, training=True)

    def backward(self, loss: Any) -> None:
        self._model.zero_grad()
        loss.backward()

    def step(self) -> None:
        self._model.train_on_batch(self._images, self._labels)

    def own(self) -> Iterable[Tensor]:
        return [variable.value for variable in (*self._model.variables, *self._model.optimizer.variables)]

    @property
    def trainable(self) -> int:
        return sum(variable.value.numel() for variable in self._model.trainable_variables)

    def merged_and_plain(self) -> tuple[Call, Call]:
        """A file of weights holds the merged kernels."""
        merged, plain = build(self._cell)[0], build(self._cell)[0]
        with tempfile.TemporaryDirectory() as folder:
            self._model.save_weights(Path(folder) / "all.weights.h5")
            merged.load_weights(Path(folder) / "all.weights.h5")
        return lambda x: merged(_laid_out(x, self._cell), training=False), lambda x: plain(
            _laid_out(x, self._cell), training=False
        )


def _laid_out(images: Tensor, cell: Cell) -> Tensor:
    return images.permute(0, 2, 3, 1).contiguous() if cell.layout == "channels_last" else images


def _enable_lora(model: Any, rank: int) -> str:
    """As its guide on transfer learning says: everything frozen but LoRA and the classifier; what has none is named."""
    without = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D) and layer.groups == 1:
            layer.enable_lora(rank, lora_alpha=rank)
            if layer.bias is not None:
                layer.bias.trainable = False
        elif isinstance(layer, keras.layers.DepthwiseConv2D):
            layer.trainable = False
            without += 1
        elif isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    return f"; without LoRA on {without} depthwise convolutions, which have no `enable_lora`" if without else ""


def make(cell: Cell) -> Trainee:
    assert torch.get_default_device().type == "cpu"
    return _Trainee(cell)
