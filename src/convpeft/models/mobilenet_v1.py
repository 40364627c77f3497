"""MobileNetV1 (Howard et al. 2017, arXiv:1704.04861), put together from timm's blocks.

timm registers the widths 1.0 and 1.25 only, and not in the form of the TensorFlow-Slim weights: 'same' padding (the odd
pixel at the right and at the bottom) and BatchNorm with eps 1e-3. The names of the tensors are timm's.
"""

from __future__ import annotations

from functools import partial

import convpeft._torchvision  # noqa: F401  # pyright: ignore[reportUnusedImport]

# isort: split
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet
from torch import nn

from convpeft.models.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

# One string a stage: depthwise-separable blocks, activated after both convolutions; repeats, kernel, stride, channels.
_STAGES = (
    ("dsa_r1_k3_s1_c64",),
    ("dsa_r2_k3_s2_c128",),
    ("dsa_r2_k3_s2_c256",),
    ("dsa_r6_k3_s2_c512",),
    ("dsa_r2_k3_s2_c1024",),
)


def mobilenet_v1(width: float, *, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build MobileNetV1 with random weights.

    Args:
        width: Factor on every number of channels, rounded to multiples of 8.
        num_classes: Outputs of the classifier.
        in_channels: Channels of the input.

    Returns:
        A timm EfficientNet with ``conv_stem``, ``blocks`` and ``classifier``; input (batch, in_channels, 224, 224).
    """
    return EfficientNet(
        decode_arch_def([list(stage) for stage in _STAGES]),
        num_classes=num_classes,
        num_features=0,
        in_chans=in_channels,
        stem_size=32,
        round_chs_fn=partial(round_channels, multiplier=width),
        pad_type="same",
        norm_layer=partial(nn.BatchNorm2d, eps=1e-3),
        act_layer=nn.ReLU6,
    )
