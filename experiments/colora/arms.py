"""The arms that claims are about, by name."""

from __future__ import annotations

from common.comparison import Comparison

HEAD, BIASES, WHOLE = "probe", "bitfit", "full"
BESIDE, AFTER = "residual-parallel", "residual-serial"
LORA, LORA_ALL = "lora", "lora, all convolutions"
COLORA, MERGED = "colora", "colora, merged each epoch"
DEPTHWISE, DEPTHWISE_MERGED = "colora, depthwise first", "colora, depthwise first, merged each epoch"


def forms_of(found: Comparison) -> list[str]:
    """The forms of CoLoRA that a transfer has."""
    return [arm for arm in (COLORA, MERGED, DEPTHWISE, DEPTHWISE_MERGED) if arm in found.arms]
