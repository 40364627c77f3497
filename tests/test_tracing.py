"""What is read off a network before it runs, and the layout that follows from it."""

import random

import pytest
import torch
from torch import Tensor, nn

import convpeft
from contract.networks import relative_error
from convpeft.tracing import read_graph
from small_network import by_definition

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Marked(nn.Module):
    """A forward that leaves marks: a counter, a kept activation, random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.register_buffer("seen", torch.zeros(()))
        self.calls, self.kept = 0, None

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        self.calls += 1
        self.seen += 1
        scale = scale * (1 + 0 * random.random()) * (1 + 0 * float(torch.rand(())))
        self.kept = self.norm(self.conv(x)).mean((2, 3))
        return self.fc(self.kept) * scale


def test_looking_at_a_network_leaves_no_mark() -> None:
    model = Marked()
    random.seed(3)
    torch.manual_seed(3)
    state = (random.getstate(), torch.get_rng_state())
    assert read_graph(model).followers == {"conv": "norm"}
    assert (model.calls, float(model.seen), model.kept) == (0, 0.0, None)
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.norm(self.conv(x)))).mean((2, 3))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)) if float(x.sum()) > 0 else self.conv(x)
        return y.mean((2, 3))


class Viewing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).view(x.shape[0], -1))


def test_layer_that_runs_twice_has_no_norm_of_its_own() -> None:
    graph = read_graph(Shared())
    assert graph.followers == {}
    assert graph.reasons == {"conv": "it or its norm runs more than once"}


def test_network_that_cannot_be_traced_says_so() -> None:
    graph = read_graph(Branching())
    assert graph.followers == {}
    assert graph.stays is not None
    assert "the network cannot be traced" in graph.stays
    assert graph.reasons == {"conv": graph.stays}


def inner_layout(model: nn.Module, x: Tensor = X) -> str:
    """Layout of what the first convolution is given in training."""
    seen: list[Tensor] = []
    conv = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    hook = conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.train()(x)
    hook.remove()
    return "contiguous" if seen[0].is_contiguous() else "channels_last"


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))


def test_images_are_turned_in_training_only() -> None:
    model = convpeft.attach(plain(), "lora")
    assert inner_layout(model) == "channels_last"
    assert convpeft.kernels_of(model).layout == "channels_last"
    seen: list[Tensor] = []
    model[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.eval()(X)
    assert seen[0] is X


def test_layout_stays_where_a_network_asks_how_numbers_lie() -> None:
    model = convpeft.attach(Viewing(), "lora")
    assert inner_layout(model) == "contiguous"
    assert read_graph(Viewing()).stays == "its forward calls view"
    convpeft.set_kernels(model, layout="channels_last")
    with pytest.raises(RuntimeError, match="view"):
        model(X)


@pytest.mark.parametrize("trained", [True, False])
def test_layout_stays_where_pytorch_would_crash(trained: bool) -> None:
    """The backward of a GroupNorm on CPU reads the gradient of an input that needs none, with channels last."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    convpeft.attach(model, "norm-tuning" if trained else "lora")
    assert inner_layout(model) == ("contiguous" if trained else "channels_last")
    model(X).sum().backward()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_layout_can_be_chosen(layout: str) -> None:
    model = convpeft.attach(plain(), "lora")
    convpeft.set_kernels(model, layout=layout)
    assert inner_layout(model) == layout


def test_images_that_come_out_lie_as_they_would_have() -> None:
    model = convpeft.attach(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)), "lora").train()
    output = model(X)
    assert output.is_contiguous()
    assert relative_error(output, by_definition(model)(X)) <= 1e-5
    assert inner_layout(model, X) == "contiguous"  # by_definition asked for it


def test_choice_can_be_repeated() -> None:
    model = convpeft.attach(plain(), "lora").train()
    model(X)
    plan = convpeft.kernels_of(model)
    convpeft.set_kernels(model, **plan.as_request())
    model(X)
    assert convpeft.kernels_of(model) == plan
    assert plan.to_dict()["sites"] == {"0": "weight"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel": "hybird"}, r"kernel='hybird' does not exist.*hybrid"),
        ({"layout": "nchw"}, r"layout='nchw' does not exist"),
        ({"sites": {"conv": "weight"}}, r"sites: no adapted layer is called 'conv'"),
        ({"sites": {"0": "fast"}}, r"sites: kernel 'fast' of '0' does not exist"),
    ],
)
def test_wrong_choice_is_refused(arguments: dict[str, object], message: str) -> None:
    model = convpeft.attach(plain(), "lora")
    with pytest.raises(convpeft.OptionError, match=message):
        convpeft.set_kernels(model, **arguments)
