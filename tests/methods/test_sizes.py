"""Trained parameters of one layer are what the paper's formula says, on several shapes."""

from collections.abc import Callable

import pytest
from torch import nn

import convpeft
from convpeft.adapters import complete_options, method_class
from convpeft.sites import Site

PLAIN = Site("plain", "conv", (128, 64, 3, 3), bias=True, stride=(1, 1), padding=(1, 1), dilation=(1, 1))
WIDE = Site("wide", "conv", (60, 24, 5, 3), bias=True, stride=(2, 2), padding=(2, 1), dilation=(1, 1))
SEQUENCE = Site("sequence", "conv", (48, 32, 7), bias=True, stride=(1,), padding=(3,), dilation=(1,))
SITES = (PLAIN, WIDE, SEQUENCE)
R = 4

# o out channels, i in channels, s kernel positions; each method's docstring names its source
FORMULAS: dict[str, tuple[dict, Callable[[int, int, int], int]]] = {
    "lora": ({"rank": R}, lambda o, i, s: R * (i * s + o)),
    "lora-fa": ({"rank": R}, lambda o, i, s: R * o),
    "dora": ({"rank": R}, lambda o, i, s: R * (i * s + o) + o),
    "loha": ({"rank": R}, lambda o, i, s: 2 * R * (o + i * s)),
    "cp": ({"rank": R}, lambda o, i, s: R * (i + o + s)),
    "tucker": ({"rank": R}, lambda o, i, s: R * i + R * o + s * R * R),
    "cp-tucker": ({"rank": R, "core_rank": 3}, lambda o, i, s: R * i + R * o + 3 * (R + R + s)),
    "mlae": ({"rank": R}, lambda o, i, s: R * (i * s + o) + R),
    "adalora": ({"rank": R, "target_rank": 2}, lambda o, i, s: R * (i * s + o) + R),
    "residual-parallel": ({}, lambda o, i, s: o * i),
    "residual-serial": ({}, lambda o, i, s: o * o + 2 * o),
    "ssf": ({}, lambda o, i, s: 2 * o),
    "bitfit": ({}, lambda o, i, s: o),
    "colora": ({}, lambda o, i, s: o * i + s * o + o),
    "full": ({}, lambda o, i, s: o * i * s + o),
    "tt": ({"rank": R}, lambda o, i, s: R * o),
    "tsa": ({}, lambda o, i, s: o * i),
}


@pytest.mark.parametrize("site", SITES, ids=[site.path for site in SITES])
@pytest.mark.parametrize("method", FORMULAS)
def test_size_is_the_papers(method: str, site: Site) -> None:
    given, formula = FORMULAS[method]
    cls = method_class(method)
    options = complete_options(cls, given)
    part = cls.form(**options)(site, **options)
    positions = site.fan_in // site.shape[1]
    assert sum(p.numel() for p in part.parameters()) == formula(site.out_channels, site.shape[1], positions)


@pytest.mark.parametrize("method", [method for method, (given, _) in FORMULAS.items() if method != "full"])
def test_learned_scale_is_one_number_more(method: str) -> None:
    options = [option.name for option in convpeft.method_info(method).options]
    additive = method_class(method).additive
    assert ("learned_scale" in options) == additive or method in ("tsa", "residual-serial")
    if not additive:
        return
    sizes = []
    for learned in (False, True):
        complete = complete_options(method_class(method), {"learned_scale": learned})
        sizes.append(sum(p.numel() for p in method_class(method)(PLAIN, **complete).parameters()))
    assert sizes[1] == sizes[0] + 1


@pytest.mark.parametrize("channels", [16, 24])
def test_norm_tuning_is_two_numbers_a_channel(channels: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels))
    assert convpeft.count(convpeft.attach(model, "norm-tuning")).trainable == 2 * channels


@pytest.mark.parametrize(("features", "classes"), [(16, 3), (40, 7)])
def test_probe_is_the_classifier(features: int, classes: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, features, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 2))
    assert convpeft.count(convpeft.attach(model, "probe", num_classes=classes)).trainable == (features + 1) * classes
