"""Blocks: found with their channels on usual networks, leaving the model as it was."""

import pytest
import timm
import torch
from torch import Tensor, nn

import convpeft
from convpeft.blocks import find_blocks


@pytest.mark.parametrize(
    ("name", "count", "last"),
    [
        ("resnet18", 8, ("layer4.1", (512, 512, 1, 1))),
        ("resnet50", 16, ("layer4.2", (2048, 2048, 1, 1))),
        ("mobilenetv3_small_050", 11, ("blocks.4.2", (48, 48, 1, 1))),
        ("convnext_atto", 12, ("stages.3.blocks.1", (320, 320, 1, 1))),
        ("regnety_002", 13, ("s4.b7", (368, 368, 1, 1))),
        ("regnetx_002", 13, ("s4.b7", (368, 368, 1, 1))),
        ("resnest14d", 4, ("layer4.0", (2048, 1024, 1, 1))),
        ("res2net50_14w_8s", 16, ("layer4.2", (2048, 2048, 1, 1))),
        ("vgg11", 0, None),
    ],
)
def test_blocks_of_usual_networks(name: str, count: int, last: tuple | None) -> None:
    model = timm.create_model(name, pretrained=False)
    training = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    blocks = find_blocks(model)
    assert len(blocks) == count
    if last is not None:
        assert (blocks[-1].path, blocks[-1].shape) == last
        assert {block.kind for block in blocks} == {"block"}
    assert [module.training for module in model.modules()] == training
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


class Pair(nn.Module):
    """Two convolutions, with what a subclass does to the data."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class InPlace(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.relu_())


class Lists(Pair):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [super().forward(x)]


class Take(nn.Module):
    def forward(self, x: list[Tensor]) -> Tensor:
        return x[0]


def test_blocks_that_change_their_input_or_return_a_list_are_left_out() -> None:
    model = nn.Sequential(Pair(3, 4), InPlace(4, 4), Lists(4, 4), Take(), Pair(4, 6))
    assert [(block.path, block.shape) for block in find_blocks(model)] == [
        ("0", (4, 3, 1, 1)),
        ("4", (6, 4, 1, 1)),
    ]


def test_blocks_are_selected_by_their_word_and_path() -> None:
    model = nn.Sequential(Pair(3, 4), Pair(4, 4), nn.Conv2d(4, 4, 1))
    assert [site.path for site in convpeft.select(model, "block")] == ["0", "1"]
    assert [site.path for site in convpeft.select(model, "block", exclude=["0"])] == ["1"]


def test_network_that_runs_on_no_usual_size_says_so() -> None:
    model = nn.Sequential(Pair(3, 4), Pair(4, 4), nn.Flatten(), nn.Linear(4 * 77 * 77, 2))
    with pytest.raises(convpeft.ModelError, match="blocks cannot be found, because it runs on no blank image"):
        find_blocks(model)


class Stage(nn.Module):
    """Runs all its children."""

    def __init__(self) -> None:
        super().__init__()
        self.only = Pair(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x


def test_stage_of_one_block_is_no_block() -> None:
    model = nn.Sequential(Pair(3, 4), Stage(), Stage())
    assert [block.path for block in find_blocks(model)] == ["0", "1.only", "2.only"]


def test_module_that_runs_its_adapters_is_stopped() -> None:
    class Gain(Stage):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(4, 4))

    model = convpeft.attach(nn.Sequential(Gain()), "full", include=["0.gain"], norm="frozen")
    with pytest.raises(convpeft.ModelError, match="runs all its children met its own adapters"):
        model(torch.randn(1, 4, 6, 6))
