"""Sites: what a pattern names, what is refused, where the head is."""

import dataclasses

import pytest
import torch
from torch import nn

import convpeft
from convpeft.sites import find_head


class Network(nn.Module):
    """Two stages with one of each kind of convolution, and a head with a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 1))
        self.layer2 = nn.Sequential(nn.Conv2d(16, 16, 3, groups=4), nn.GroupNorm(2, 16), nn.ConvTranspose2d(16, 4, 3))
        self.gain = nn.Parameter(torch.ones(4, 1, 1))
        self.head = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def paths(*include: str, exclude: str | None = None) -> list[str]:
    return [site.path for site in convpeft.select(Network(), list(include) or None, exclude)]


def test_default_selection_is_every_convolution_and_linear_but_the_head() -> None:
    assert paths() == ["stem", "layer1.0", "layer1.2", "layer2.0", "layer2.2", "head.1"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("conv", ["stem", "layer1.0", "layer1.2", "layer2.0", "layer2.2"]),
        ("linear", ["head.1", "head.3"]),
        ("norm", ["layer1.1", "layer2.1", "head.0"]),
        ("parameter", [""]),
        ("depthwise", ["layer1.0"]),
        ("grouped", ["layer2.0"]),
        ("pointwise", ["layer1.2"]),
        ("spatial", ["stem", "layer1.0", "layer2.0", "layer2.2"]),
        ("transposed", ["layer2.2"]),
        ("head", ["head.3"]),
        ("stage:1", ["layer1.0", "layer1.1", "layer1.2"]),
        ("stage:last", ["layer2.0", "layer2.1", "layer2.2"]),
        ("layer1", ["layer1.0", "layer1.1", "layer1.2"]),
        ("layer?.0", ["layer1.0", "layer2.0"]),
        ("head.*", ["head.0", "head.1", "head.3"]),
        ("gain", [""]),
        ("stem", ["stem"]),
    ],
)
def test_pattern_names(pattern: str, expected: list[str]) -> None:
    assert paths(pattern) == expected


def test_exclude_takes_away_what_include_names() -> None:
    assert paths("conv", exclude="stage:last") == ["stem", "layer1.0", "layer1.2"]


def test_path_is_not_a_prefix_of_a_longer_name() -> None:
    model = nn.Sequential()
    model.add_module("block1", nn.Conv2d(3, 3, 3))
    model.add_module("block10", nn.Conv2d(3, 3, 3))
    assert [site.path for site in convpeft.select(model, ["block1"])] == ["block1"]


@pytest.mark.parametrize(
    ("argument", "pattern"), [("include", "layre1"), ("exclude", "layre1"), ("include", "stage:9")]
)
def test_pattern_that_names_nothing_is_refused(argument: str, pattern: str) -> None:
    with pytest.raises(convpeft.OptionError, match=rf"{argument}='{pattern}' names no layer of this model\. .*layer1"):
        convpeft.select(Network(), **{argument: [pattern]})


def test_pattern_error_of_a_large_model_lists_a_few_near_names() -> None:
    model = nn.Sequential(*[nn.Conv2d(3, 3, 3) for _ in range(50)])
    with pytest.raises(convpeft.OptionError, match=r"Near it: .*select\(model\)` lists them all") as refusal:
        convpeft.select(model, ["4 9"])
    assert len(str(refusal.value)) < 300


def test_empty_include_selects_nothing() -> None:
    assert convpeft.select(Network(), []) == ()


def test_site_describes_shape_groups_and_bias() -> None:
    sites = {site.path: site for site in convpeft.select(Network(), ["conv", "linear", "norm"])}
    assert sites["layer1.0"].shape == (8, 1, 3, 3)
    assert (sites["layer1.0"].groups, sites["layer1.0"].bias) == (8, True)
    assert sites["layer2.2"].shape == (4, 16, 3, 3)
    assert sites["layer2.2"].transposed
    assert (sites["head.3"].out_channels, sites["head.3"].fan_in, sites["head.3"].kernel) == (2, 4, ())
    assert (sites["stem"].fan_in, sites["stem"].kernel) == (27, (3, 3))
    assert sites["layer1.0"].describe() == "layer 'layer1.0' (depthwise, conv, weight (8, 1, 3, 3))"
    with pytest.raises(dataclasses.FrozenInstanceError):
        sites["stem"].path = "other"  # type: ignore[misc]


def test_transposed_shape_is_out_first_with_groups() -> None:
    (site,) = convpeft.select(nn.Sequential(nn.ConvTranspose2d(6, 4, 3, groups=2)), ["conv"])
    assert site.shape == (4, 3, 3, 3)


def test_selection_changes_nothing() -> None:
    model = Network()
    convpeft.select(model)
    assert all(type(module).__name__[:7] != "Adapted" for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_selection_of_an_adapted_model_is_that_of_its_base() -> None:
    model = Network()
    before = convpeft.select(model, ["conv", "linear", "norm", "parameter"])
    convpeft.attach(model, "full")
    assert convpeft.select(model, ["conv", "linear", "norm", "parameter"]) == before


def test_module_used_twice_is_one_site() -> None:
    shared = nn.Conv2d(3, 3, 3)
    assert [site.path for site in convpeft.select(nn.Sequential(shared, nn.ReLU(), shared), ["conv"])] == ["0"]


def test_head_is_the_last_linear_or_pointwise_convolution() -> None:
    assert find_head(Network()) == "head.3"
    assert find_head(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1))) == "1"
    assert find_head(nn.Sequential(nn.Conv2d(3, 8, 3))) is None


def test_head_can_be_named() -> None:
    assert [site.path for site in convpeft.select(Network(), ["head"], head="head.1")] == ["head.1"]


@pytest.mark.parametrize("head", ["stem", "layer1.1", "no.such", ""])
def test_head_that_is_no_classifier_is_refused(head: str) -> None:
    with pytest.raises(convpeft.OptionError, match=rf"head='{head}' is not a Linear or 1x1 convolution.*head\.3"):
        convpeft.select(Network(), ["conv"], head=head)


def test_head_that_the_model_names_itself_is_taken() -> None:
    class Named(Network):
        def get_classifier(self) -> nn.Module:
            return self.head[1]

    assert find_head(Named()) == "head.1"
