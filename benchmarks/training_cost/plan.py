"""What is measured: networks, modes, the tables that vary one thing, and the figures that convpeft wants to reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

CLASSES, RANK, SIZE = 10, 8, 112
SEED, LEARNING_RATE, WEIGHT_DECAY = 0, 1e-3, 0.01
ROUNDS, GROWTH_ROUNDS, INFERENCE_ROUNDS = 12, 6, 20
INFERENCE_BATCH = 8
GPU_BATCH, GPU_SIZE, GPU_STEPS = 64, 224, 5  # a GPU is idle with less; steps on the clock at once
MEMORY_STEPS, UNTIMED_STEPS = 3, 3  # untimed: they fetch from the system what the others' turns took away
LAYOUTS = ("contiguous", "channels_last")


@dataclass(frozen=True)
class Net:
    """A network by the name that its library gives it."""

    name: str
    title: str
    library: str
    batch: int
    seconds: float  # of a step of full fine-tuning on two cores, to foretell how long the benchmark takes


NETS = {
    net.name: net
    for net in (
        Net("resnet18", "ResNet-18", "torchvision", 32, 0.45),
        Net("resnet50", "ResNet-50", "torchvision", 16, 0.65),
        Net("mobilenetv3_small_100", "MobileNetV3-small", "timm", 32, 0.11),
        Net("efficientnet_b0", "EfficientNet-B0", "timm", 16, 0.25),
        Net("convnext_atto", "ConvNeXt-atto", "timm", 16, 0.14),
    )
}


@dataclass(frozen=True)
class Mode:
    """One way to train a network; `layouts` are tried and the faster is kept, `own` leaves the layout alone."""

    title: str
    library: str
    method: str
    layouts: tuple[str, ...] = ("own",)
    against: str = "full"
    merges: bool = False
    words: dict[str, Any] = field(default_factory=dict[str, Any])  # of `convpeft.set_kernels`
    same_as: str = ""  # convpeft's mode of the same method
    extra: str = ""  # fused: AdamW in one kernel; autotune, checkpointing, compile: as they are called in a recipe


MODES = {
    "full": Mode("full fine-tuning, contiguous", "torch", "full", ("contiguous",)),
    "full-channels-last": Mode("full fine-tuning, channels_last", "torch", "full", ("channels_last",)),
    "head": Mode("head only", "torch", "head", LAYOUTS),
    "default": Mode("convpeft LoRA", "convpeft", "lora", merges=True),
    "weight": Mode("convpeft LoRA, kernel `weight`", "convpeft", "lora", words={"kernel": "weight"}),
    "side": Mode("convpeft LoRA, kernel `side`", "convpeft", "lora", words={"kernel": "side"}),
    "hybrid": Mode("convpeft LoRA, kernel `hybrid`", "convpeft", "lora", words={"kernel": "hybrid"}),
    "unfolded": Mode("convpeft LoRA, norms not folded", "convpeft", "lora", words={"fold": False}),
    "contiguous": Mode("convpeft LoRA, layout left alone", "convpeft", "lora", words={"layout": "contiguous"}),
    "full-fused": Mode(
        "full fine-tuning, channels_last, fused AdamW", "torch", "full", ("channels_last",), extra="fused"
    ),
    "fused": Mode("convpeft LoRA, fused AdamW", "convpeft", "lora", extra="fused"),
    "autotuned": Mode("convpeft LoRA, kernels measured by `autotune`", "convpeft", "lora", extra="autotune"),
    "checkpointing": Mode("convpeft LoRA, blocks computed again", "convpeft", "lora", extra="checkpointing"),
    "lean": Mode("convpeft LoRA-FA (`lean`)", "convpeft", "lora-fa", merges=True),
    "peft-lora": Mode("peft LoRA", "peft", "lora", LAYOUTS, merges=True, same_as="default"),
    "lycoris-locon": Mode("LyCORIS LoCon", "lycoris", "lora", LAYOUTS, merges=True, same_as="default"),
    "loralib": Mode("loralib LoRA", "loralib", "lora", LAYOUTS, merges=True, same_as="default"),
    "keras-lora": Mode("Keras `enable_lora`", "keras", "lora", LAYOUTS, merges=True, same_as="default"),
    "keras-full": Mode("Keras full fine-tuning", "keras", "full", LAYOUTS),
    "dora": Mode("convpeft DoRA", "convpeft", "dora", merges=True),
    "peft-dora": Mode("peft DoRA", "peft", "dora", LAYOUTS, merges=True, same_as="dora"),
    "loha": Mode("convpeft LoHa", "convpeft", "loha", merges=True),
    "peft-loha": Mode("peft LoHa", "peft", "loha", LAYOUTS, merges=True, same_as="loha"),
    "lycoris-loha": Mode("LyCORIS LoHa", "lycoris", "loha", LAYOUTS, merges=True, same_as="loha"),
    "lokr": Mode("convpeft LoKr", "convpeft", "lokr", merges=True),
    "peft-lokr": Mode("peft LoKr", "peft", "lokr", LAYOUTS, merges=True, same_as="lokr"),
    "lycoris-lokr": Mode("LyCORIS LoKr", "lycoris", "lokr", LAYOUTS, merges=True, same_as="lokr"),
    "full-compiled": Mode("full fine-tuning, contiguous, compiled", "torch", "full", ("contiguous",), extra="compile"),
    "compiled": Mode("convpeft LoRA, compiled", "convpeft", "lora", extra="compile"),
    "bf16-full": Mode("full fine-tuning, bf16, contiguous", "torch", "full", ("contiguous",), "bf16"),
    "bf16-full-channels-last": Mode(
        "full fine-tuning, bf16, channels_last", "torch", "full", ("channels_last",), "bf16"
    ),
    "bf16-default": Mode("convpeft LoRA, bf16", "convpeft", "lora", against="bf16"),
    "bf16-lean": Mode("convpeft LoRA-FA (`lean`), bf16", "convpeft", "lora-fa", against="bf16"),
}
BASELINES = {"full": ("full", "full-channels-last"), "bf16": ("bf16-full", "bf16-full-channels-last")}
FAST = ("full", "full-channels-last", "head", "default")  # what `--fast` measures
# Modes that take turns in the same rounds; one process each, all alive at once, the baselines with them.
GROUPS = (
    (
        *("full", "full-channels-last", "head", "default", "weight", "side", "hybrid", "unfolded", "contiguous"),
        *(
            "full-fused",
            "fused",
            "autotuned",
            "checkpointing",
            "lean",
            "peft-lora",
            "lycoris-locon",
            "loralib",
            "keras-lora",
            "keras-full",
        ),
    ),
    ("dora", "peft-dora", "loha", "peft-loha", "lycoris-loha", "lokr", "peft-lokr", "lycoris-lokr"),
    ("bf16-full", "bf16-full-channels-last", "bf16-default", "bf16-lean"),
    ("full-compiled", "compiled"),
)
SELDOM = ("full-compiled", "compiled")  # minutes each; only where they are named


@dataclass(frozen=True)
class Cell:
    """One mode on one network; everything that its process needs to know."""

    net: str
    mode: str
    batch: int
    size: int = SIZE
    rank: int = RANK
    first: str = ""  # the first stage with adapters; empty for all
    layout: str = "own"
    device: str = "cpu"

    @property
    def key(self) -> str:
        """The name of its row, which does not depend on the layout that wins."""
        return f"{self.net} {self.mode} b{self.batch} s{self.size} r{self.rank} {self.first or 'all'}"

    def laid_out(self, layout: str) -> Cell:
        return replace(self, layout=layout)


RANKS, BATCHES, SIZES = (1, 2, 4, 8, 16, 32, 64), (8, 16, 32, 64), (64, 112, 160, 224)
STAGES = ("", "layer2", "layer3", "layer4")
GROWTH_NET = "resnet18"


def method_groups(nets: Sequence[str], modes: Sequence[str], *, fast: bool, device: str = "cpu") -> list[list[Cell]]:
    """Of each network, the modes that are asked for, as they take turns."""
    usual = {net: (NETS[net].batch, SIZE) if device == "cpu" else (GPU_BATCH, GPU_SIZE) for net in nets}
    of = dict.fromkeys(nets, (4, 32)) if fast else usual
    groups = [
        [Cell(net, mode, *of[net], device=device) for mode in group if mode in modes]
        for net in nets
        for group in GROUPS
    ]
    return [group for group in groups if group]


def growth_groups(*, fast: bool) -> dict[str, list[list[Cell]]]:
    """By what is varied, the cells of convpeft's default that share one baseline."""
    base = Cell(GROWTH_NET, "default", NETS[GROWTH_NET].batch)
    if fast:
        return {"rank": [[replace(base, batch=4, size=32, rank=RANKS[0])]]}
    return {
        "rank": [[replace(base, rank=rank) for rank in RANKS]],
        "batch": [[replace(base, batch=batch)] for batch in BATCHES],
        "size": [[replace(base, batch=16, size=size)] for size in SIZES],
        "first": [[replace(base, first=stage) for stage in STAGES]],
    }


@dataclass(frozen=True)
class Target:
    """A figure to reach on one network: the largest ratio that counts as met."""

    figure: str
    mode: str
    field: str
    most: dict[str, float]


TARGETS = (
    Target("default mode: step time", "default", "time", {"resnet18": 0.78, "resnet50": 0.73}),
    Target("default mode: saved activations", "default", "saved", {"resnet18": 0.60, "resnet50": 0.52}),
    Target("stretch, default mode: step time", "default", "time", {"resnet18": 0.70, "resnet50": 0.68}),
    Target("stretch, default mode: saved activations", "default", "saved", {"resnet18": 0.55, "resnet50": 0.48}),
    Target("lean: step time", "lean", "time", {"resnet18": 0.80, "resnet50": 0.80}),
    Target("lean: saved activations", "lean", "saved", {"resnet18": 0.18, "resnet50": 0.15}),
    Target("bf16: step time", "bf16-default", "time", {"resnet18": 0.88, "resnet50": 0.80}),
)
MERGED_WITHIN, PREFIX_MOST = 0.03, 0.13
