"""LoRA-C: the paper's sizes, its rule for the setting, both layouts, the pairs of each filter."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import convpeft
from convpeft.methods.lora_c import LoraC
from convpeft.sites import Site

CONV = Site("conv", "conv", (64, 32, 3, 3))
WIDE = Site("wide", "conv", (48, 96, 5, 5))
GROUPED = Site("grouped", "conv", (24, 4, 3, 3), groups=3)
DEPTHWISE = Site("depthwise", "conv", (32, 1, 3, 3), groups=32)
LINEAR = Site("linear", "linear", (40, 96))
AUDIO = Site("audio", "conv", (16, 8, 9))
VIDEO = Site("video", "conv", (12, 6, 2, 3, 4))
FLAT = Site("flat", "conv", (24, 24, 1, 7))
TALL = Site("tall", "conv", (24, 24, 7, 1))
ALL = pytest.mark.parametrize(
    "site", [CONV, WIDE, GROUPED, DEPTHWISE, LINEAR, AUDIO, VIDEO, FLAT], ids=lambda s: s.path
)


def size(adapter: nn.Module) -> int:
    return sum(parameter.numel() for parameter in adapter.parameters())


def resnet(blocks: tuple[int, int, int, int], *, bottleneck: bool, stem: int = 3, classes: int = 10) -> Iterator[Site]:
    """Convolutions and classifier of a torchvision-like ResNet with a stem of this kernel size."""
    yield Site("conv1", "conv", (64, 3, stem, stem))
    inputs = 64
    for stage, depth in enumerate(blocks):
        width = 64 * 2**stage
        outputs = 4 * width if bottleneck else width
        for block in range(depth):
            first = [(width, inputs, 1, 1), (width, width, 3, 3), (outputs, width, 1, 1)]
            shapes = first if bottleneck else [(width, inputs, 3, 3), (width, width, 3, 3)]
            shapes += [(outputs, inputs, 1, 1)] if block == 0 and inputs != outputs else []
            for number, shape in enumerate(shapes):
                yield Site(f"layer{stage + 1}.{block}.{number}", "conv", shape)
            inputs = outputs
    yield Site("fc", "linear", (classes, inputs), head=True)


RESNET18, RESNET34, RESNET50, RESNET101 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 6, 3), (3, 4, 23, 3)


@pytest.mark.parametrize("site", [CONV, WIDE], ids=["3x3", "5x5"])
def test_size_is_the_formula_of_the_paper(site: Site) -> None:
    outputs, inputs, k, _ = site.shape
    assert size(LoraC(site, rank=2, setting="rk")) == (outputs + inputs) * 2 * k * k
    assert size(LoraC(site, rank=2, setting="r")) == (outputs + inputs) * 2 * k
    assert size(LoraC(site, rank=2, per="kernel")) == outputs * (inputs * 2 * k + 2 * k)


@pytest.mark.parametrize(
    ("blocks", "bottleneck", "classes", "rank", "setting", "expected"),
    [
        (RESNET18, False, 10, 1, "rk", 73_280),
        (RESNET18, False, 10, 16, "rk", 1_069_760),
        (RESNET18, False, 10, 16, "r", 375_488),
        (RESNET50, True, 10, 16, "rk", 1_773_248),
        (RESNET50, True, 10, 16, "r", 1_048_256),
        (RESNET101, True, 100, 1, "r", 340_288),
        (RESNET101, True, 10, 16, "rk", 3_722_944),
    ],
)
def test_trained_numbers_of_the_paper_are_factors_stem_and_classifier(
    blocks: tuple, bottleneck: bool, classes: int, rank: int, setting: str, expected: int
) -> None:
    stem, *body, head = resnet(blocks, bottleneck=bottleneck, classes=classes)
    factors = sum(size(LoraC(site, rank=rank, setting=setting)) for site in body)
    assert math.prod(stem.shape) + factors + math.prod(head.shape) == expected


@pytest.mark.parametrize(
    ("blocks", "bottleneck", "stem", "expected"),
    [
        (RESNET18, False, 7, "rk"),
        (RESNET34, False, 3, "rk"),
        (RESNET50, True, 7, "r"),
        (RESNET50, True, 3, "r"),
        (RESNET101, True, 3, "r"),
    ],
)
def test_auto_is_rk_below_resnet50_and_r_from_it_on(blocks: tuple, bottleneck: bool, stem: int, expected: str) -> None:
    known = list(resnet(blocks, bottleneck=bottleneck, stem=stem, classes=1000))
    settled = LoraC.settle({"rank": 4, "setting": "auto"}, known[3:5], known)
    assert settled == [{"rank": 4, "setting": expected}] * 2


def test_size_of_the_classifier_does_not_move_the_rule() -> None:
    known = list(resnet(RESNET34, bottleneck=False, classes=100_000))
    assert LoraC.settle({"setting": "auto"}, known[:1], known) == [{"setting": "rk"}]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"setting": "rk"}, "rk"),
        ({"setting": "auto", "layout": "loralib"}, "rk"),
        ({"setting": "auto", "per": "kernel"}, "r"),
    ],
)
def test_choice_of_the_user_and_of_the_released_code_stand(options: dict, expected: str) -> None:
    known = list(resnet(RESNET101, bottleneck=True))
    assert LoraC.settle(options, known[1:2], known) == [options | {"setting": expected}]


def test_released_shapes_are_reproduced_on_groups() -> None:
    adapter = LoraC(GROUPED, rank=2, layout="loralib")
    assert (adapter.down.shape, adapter.up.shape) == ((2 * 3, 12 * 3), (24 // 3 * 3, 2 * 3))
    with torch.no_grad():
        adapter.up.normal_()
        adapter.down.normal_()
    weight = torch.randn(GROUPED.shape)
    expected = weight + 2 * (adapter.up @ adapter.down).view(weight.shape)
    torch.testing.assert_close(adapter(weight, None)[0], expected)


@pytest.mark.parametrize(("layout", "rank"), [("aligned", 3), ("loralib", 24)])
def test_aligned_delta_alone_has_the_rank_of_the_formula(layout: str, rank: int) -> None:
    adapter = LoraC(Site("conv", "conv", (8, 8, 3, 3)), rank=1, setting="rk", layout=layout)
    with torch.no_grad():
        adapter.up.normal_(generator=torch.Generator().manual_seed(0))
        adapter.down.normal_(generator=torch.Generator().manual_seed(1))
        delta = adapter(torch.zeros(8, 8, 3, 3), None)[0]
    assert torch.linalg.matrix_rank(delta.transpose(1, 2).reshape(24, 24)) == rank


@ALL
@pytest.mark.parametrize(
    "options", [{"setting": "rk"}, {"setting": "r"}, {"layout": "loralib"}, {"per": "kernel"}], ids=str
)
def test_adapter_of_any_rank_is_no_larger_than_its_layer(site: Site, options: dict) -> None:
    largest = LoraC.largest_rank(site, **options)
    assert size(LoraC(site, rank=10**6, **options)) <= math.prod(site.shape)
    if largest > 1:
        exact = LoraC(site, rank=largest, **options)
        assert exact.up.shape[-1] == largest * (
            1 if "r" in options.values() or "per" in options else max(site.kernel, default=1)
        )


@pytest.mark.parametrize("site", [DEPTHWISE, AUDIO, FLAT, TALL, VIDEO, LINEAR], ids=lambda site: site.path)
@pytest.mark.parametrize("options", [{"setting": "rk"}, {"setting": "r"}, {"layout": "loralib"}], ids=str)
def test_layer_that_the_paper_does_not_have_is_not_skipped(site: Site, options: dict) -> None:
    assert LoraC.largest_rank(site, **options) >= 1
    assert LoraC(site, rank=1, **options).up.numel() > 0


def test_kernels_with_one_long_side_are_the_matrix_of_lora() -> None:
    assert (LoraC(FLAT, rank=1).up.shape, LoraC(FLAT, rank=1).down.shape) == ((24, 7), (7, 24 * 7))
    assert LoraC(TALL, rank=1).up.shape == LoraC(FLAT, rank=1).up.shape


def test_start_is_zero_on_the_output_side_alone() -> None:
    for per in ("layer", "kernel"):
        adapter = LoraC(CONV, rank=2, per=per)
        adapter.start(torch.zeros(CONV.shape), None, torch.Generator().manual_seed(0))
        assert torch.count_nonzero(adapter.up) == 0
        assert torch.count_nonzero(adapter.down) == adapter.down.numel()
        assert 0.9 / math.sqrt(96) < adapter.down.abs().max() <= 1 / math.sqrt(96)  # 96 = 32 * 3 inputs of each row


def test_default_scale_is_two_at_every_rank() -> None:
    assert [LoraC(CONV, rank=rank).scale for rank in (1, 16, 10**4)] == [2, 2, 2]
    assert LoraC(CONV, rank=4, alpha=2.0).scale == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"'lora-c': rank=0 is out of range"),
        ({"alpha": math.nan}, r"'lora-c': alpha=nan is out of range"),
        ({"layout": "loralib", "setting": "r"}, r"layout='loralib' has no setting='r'. Use setting='rk' or 'auto'"),
        ({"per": "kernel", "setting": "rk"}, r"per='kernel' has no setting='rk'. Use setting='r' or 'auto'"),
        ({"per": "kernel", "layout": "loralib"}, r"layout='loralib' does not exist with per='kernel'"),
    ],
)
def test_option_that_has_no_meaning_is_refused(options: dict, message: str) -> None:
    with pytest.raises(convpeft.OptionError, match=message):
        LoraC(CONV, **options)
