"""VGG16 by its parameter counts: what convpeft would train of it, beside what the paper says it trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import convpeft

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_LORA_BLOCKS = (2, 3, 4, 5)  # where the paper puts its baseline
_LORA_RANKS = {4: "0.90", 8: "0.93", 16: "0.99"}
_PLACED = {(1, 2, 3, 4, 5): "2.55", (2, 3, 4, 5): "2.54", (3, 4, 5): "2.51", (4, 5): "2.34", (5,): "1.67"}


def vgg16() -> nn.Module:
    """VGG16's convolutions by block and the paper's head for four classes, without numbers in them."""
    model, inputs = nn.Module(), 3
    with torch.device("meta"):
        for number, widths in enumerate(BLOCKS, start=1):
            layers = nn.Sequential()
            for width in widths:
                layers.append(nn.Conv2d(inputs, width, 3, padding=1))
                inputs = width
            model.add_module(f"block{number}", layers)
        model.top = nn.Sequential(nn.Conv2d(512, 128, 1), nn.Linear(7 * 7 * 128, 128), nn.Linear(128, 4))
    return model.to_empty(device="cpu").requires_grad_(False)


def count_rows() -> list[dict[str, Any]]:
    """What is trained, the paper's figure in millions with two decimals, and the count here."""
    return [{"what": what, "published": told, "counted": counted} for what, told, counted in _counts()]


def _counts() -> Iterator[tuple[str, str | None, int]]:
    head = _trained("full", include=["top"], norm="frozen")
    yield "the whole network", "15.58", sum(parameter.numel() for parameter in vgg16().parameters())
    yield "the head alone", "0.87", head
    yield "BitFit", "0.87", _trained("bitfit", exclude=["top"], also_train=["top"])
    for blocks, told in _PLACED.items():
        include = [f"block{number}" for number in blocks]
        where = f"blocks {blocks[0]} to {blocks[-1]}" if len(blocks) > 1 else f"block {blocks[0]}"
        yield (
            f"CoLoRA, {where}, two biases a layer as in the released code",
            told,
            _trained("colora", include=include, also_train=["top"], bias="paper"),
        )
    shapes = [(a, b) for number in _LORA_BLOCKS for a, b in _shapes(number)]
    yield "CoLoRA, blocks 2 to 5, pointwise factors alone", "0.91", head + sum(a * b for a, b in shapes)
    yield "CoLoRA, blocks 2 to 5, depthwise factors alone", None, head + sum(9 * b for _, b in shapes)
    include = [f"block{number}" for number in _LORA_BLOCKS]
    for rank, told in _LORA_RANKS.items():
        yield f"LoRA of rank {rank} by 1 x 1 convolutions", told, head + sum(rank * (a + b) for a, b in shapes)
        kernel = _trained("lora", include=include, also_train=["top"], rank=rank)
        yield f"LoRA of rank {rank} by k x k convolutions (`lora`)", None, kernel


def _trained(method: str, **options: Any) -> int:
    model = vgg16()
    convpeft.attach(model, method, **options)
    return convpeft.count(model).trainable


def _shapes(block: int) -> Iterator[tuple[int, int]]:
    """Channels in and out of each convolution of a block."""
    inputs = 3 if block == 1 else BLOCKS[block - 2][-1]
    for width in BLOCKS[block - 1]:
        yield inputs, width
        inputs = width
