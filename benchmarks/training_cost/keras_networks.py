"""The same networks in Keras: those of keras.applications, and a ResNet-18 that it lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from plan import CLASSES, Cell
from trainee import NotOfferedError

_OFFERED: dict[str, Callable[..., Any]] = {
    "resnet50": keras.applications.ResNet50,
    "mobilenetv3_small_100": keras.applications.MobileNetV3Small,
    "efficientnet_b0": keras.applications.EfficientNetB0,
}
_NOTES = {
    "resnet18": "a ResNet-18 of Keras layers: keras.applications has none",
    "resnet50": "its convolutions have biases, and the stride is in the first of a block",
    "mobilenetv3_small_100": "dropout before the classifier",
    "efficientnet_b0": "dropout before the classifier, and a normalisation of the images",
}


def build(cell: Cell) -> tuple[Any, str]:
    """A fresh network and what differs from the one in PyTorch; `cell.layout` is its data format."""
    first = cell.layout != "channels_last"
    keras.utils.set_random_seed(0)
    keras.backend.set_image_data_format("channels_first" if first else "channels_last")
    shape = (3, cell.size, cell.size) if first else (cell.size, cell.size, 3)
    if cell.net == "resnet18":
        return _resnet18(shape, axis=1 if first else -1), _NOTES[cell.net]
    if cell.net not in _OFFERED:
        raise NotOfferedError("keras.applications has no network of this size")
    words = {"weights": None, "classes": CLASSES, "input_shape": shape, "classifier_activation": None}
    return _OFFERED[cell.net](**words), _NOTES[cell.net]


def _resnet18(shape: tuple[int, ...], *, axis: int) -> Any:
    layers = keras.layers

    def convolve(x: Any, channels: int, size: int, stride: int) -> Any:
        padded = layers.ZeroPadding2D(size // 2)(x) if size > 1 else x
        out = layers.Conv2D(channels, size, strides=stride, use_bias=False)(padded)
        return layers.BatchNormalization(axis=axis, momentum=0.9, epsilon=1e-5)(out)

    def block(x: Any, channels: int, stride: int) -> Any:
        out = layers.ReLU()(convolve(x, channels, 3, stride))
        out = convolve(out, channels, 3, 1)
        beside = convolve(x, channels, 1, stride) if stride > 1 else x
        return layers.ReLU()(layers.Add()([out, beside]))

    images = keras.Input(shape)
    x = layers.ReLU()(convolve(images, 64, 7, 2))
    x = layers.MaxPooling2D(3, strides=2)(layers.ZeroPadding2D(1)(x))  # after a ReLU zero is as good as -inf
    for channels in (64, 128, 256, 512):
        x = block(x, channels, 1 if channels == 64 else 2)
        x = block(x, channels, 1)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, layers.Dense(CLASSES)(x))
