"""The sites of ResNet-50, written down: what sizes of methods are told on, without building the network."""

from __future__ import annotations

from typing import Any

from convpeft.sites import Site

_BLOCKS = (3, 4, 6, 3)
_WIDTHS = (64, 128, 256, 512)
_EXPANSION = 4


def resnet50_sites(classes: int = 1000) -> tuple[Site, ...]:
    """Every site of torchvision's and timm's resnet50, in order, blocks last."""
    sites = [_conv("conv1", 3, 64, 7, stride=2), _norm("bn1", 64)]
    blocks: list[Site] = []
    inputs = 64
    for number, (count, width) in enumerate(zip(_BLOCKS, _WIDTHS, strict=True), start=1):
        stage: dict[str, Any] = {"stage": number, "last_stage": number == len(_BLOCKS)}
        outputs = width * _EXPANSION
        for index in range(count):
            path, stride = f"layer{number}.{index}", 2 if index == 0 and number > 1 else 1
            for layer, (given, made, kernel, step) in enumerate(
                ((inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)), start=1
            ):
                sites.append(_conv(f"{path}.conv{layer}", given, made, kernel, stride=step, **stage))
                sites.append(_norm(f"{path}.bn{layer}", made, **stage))
            if index == 0:
                sites.append(_conv(f"{path}.downsample.0", inputs, outputs, 1, stride=stride, **stage))
                sites.append(_norm(f"{path}.downsample.1", outputs, **stage))
            blocks.append(Site(path, "block", (outputs, inputs, 1, 1), tensor="", **stage))
            inputs = outputs
    head = Site("fc", "linear", (classes, inputs), bias=True, head=True)
    return (*sites, head, *blocks)


def _conv(path: str, inputs: int, outputs: int, kernel: int, *, stride: int, **stage: Any) -> Site:
    padding = (kernel - 1) // 2
    moves: dict[str, tuple[int, int]] = {
        "stride": (stride, stride),
        "padding": (padding, padding),
        "dilation": (1, 1),
        "output_padding": (0, 0),
    }
    return Site(path, "conv", (outputs, inputs, kernel, kernel), **moves, **stage)


def _norm(path: str, channels: int, **stage: Any) -> Site:
    return Site(path, "norm", (channels,), bias=True, **stage)
