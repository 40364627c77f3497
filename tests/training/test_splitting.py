"""A network is cut where nothing before is trained, and its halves are the network: in numbers and in gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convpeft
from contract.networks import randomise, relative_error
from convpeft.models import load_model
from convpeft.training.checkpoints import adapter_tensors
from convpeft.training.splitting import CannotSplit, Feature, running, share_before_training, split_network


def chain(*between: nn.Module) -> nn.Sequential:
    """Two convolutions and a head, with something between the convolutions."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    nn.init.normal_(norm.running_mean)
    first = (nn.Conv2d(3, 6, 3, padding=1), norm, nn.ReLU(), *between)
    return nn.Sequential(
        *first, nn.Conv2d(6, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()


def adapted(model: nn.Module, *include: str, **options: object) -> nn.Module:
    return randomise(convpeft.attach(model, "lora", rank=2, include=list(include), **options), 3)


def images(size: int = 9, count: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


class Skips(nn.Module):
    """Frozen results run around the trained layer: the cut goes through two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.beside = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 5, padding=2)
        self.trained, self.head = nn.Conv2d(5, 5, 3, padding=1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu_()
        y = self.trained(x) + self.beside(x)
        return self.head(y.relu_().mean((2, 3)))


class Sorts(nn.Module):
    """Asks for a number while it runs, which no graph can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).mean((2, 3))
        return self.head(x if x.sum() > 0 else -x)


class Centres(nn.Module):
    """Subtracts what all images of the batch have in common."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class Drops(nn.Module):
    """Dropout as a function in a module with others, so that tracing fixes whether it acts."""

    def __init__(self) -> None:
        super().__init__()
        self.after = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(F.dropout(x, 0.5, self.training))


class Counts(nn.Module):
    """Says something else at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


def network(source: str, last: str) -> nn.Module:
    torch.manual_seed(0)
    model = load_model(source, pretrained=False)
    convpeft.attach(model, "lora", rank=2, num_classes=3, include=[last])
    return randomise(model, 3)


@pytest.mark.parametrize(
    ("source", "last", "size"),
    [
        ("torchvision/resnet18", "layer4.*", 48),
        ("timm/mobilenetv3_small_050", "stage:last", 64),
        ("cifar-resnet/20", "stage:last", 32),
    ],
)
def test_halves_train_as_the_network_does(source, last, size):
    model = network(source, last).double()
    x, labels = images(size, 3, torch.float64), torch.tensor([0, 1, 2])
    halves = split_network(model, x)
    assert halves.evaluates
    assert 0.3 < halves.share < 1
    found: list[tuple[Tensor, dict[str, Tensor]]] = []
    for half in (False, True):
        model.zero_grad()
        model.train()
        with running(model, halves.run_rest if half else type(model).forward.__get__(model)):
            answer = model(halves.serve(halves.pack(halves.prefix.forward(x))) if half else x)
        F.cross_entropy(answer, labels).backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((answer, grads))
    assert relative_error(found[1][0], found[0][0]) < 1e-10
    assert found[0][1].keys() == found[1][1].keys()
    assert len(found[0][1]) >= 4
    for name, grad in found[0][1].items():
        assert relative_error(found[1][1][name], grad) < 1e-9, name


def test_prefix_ends_before_the_first_trained_layer_and_takes_the_norm_along():
    assert split_network(adapted(chain(), "3"), images()).place == "2"


def test_cut_is_where_the_fewest_numbers_pass_if_no_work_is_lost():
    model = adapted(chain(nn.MaxPool2d(3), nn.Upsample(scale_factor=4)), "5")
    halves = split_network(model, images(30))
    assert halves.place == "3"
    assert halves.features[0].shape == (6, 10, 10)


def test_share_is_what_the_layers_before_cost():
    model = adapted(chain(), "3", "7")
    first, deep, head = 81 * 6 * 27, 49 * 4 * 54, 12
    expected = first / (first + deep + head)
    assert split_network(model, images()).share == pytest.approx(expected, rel=1e-9)
    assert share_before_training(model, images()) == pytest.approx(expected, rel=1e-9)


def test_share_is_nothing_where_the_first_layer_is_trained():
    assert share_before_training(adapted(chain(), "conv"), images()) == 0


def test_several_tensors_are_cut_and_put_together_again():
    torch.manual_seed(0)
    model = adapted(Skips(), "trained").train()
    halves = split_network(model, images())
    assert [feature.shape for feature in halves.features] == [(5, 9, 9), (5, 9, 9)]
    rows = halves.pack(halves.prefix.forward(images()))
    assert rows.shape == (4, halves.numbers)
    torch.testing.assert_close(halves.run_rest(halves.serve(rows)), model(images()))


def test_what_is_random_is_not_in_the_prefix():
    halves = split_network(adapted(chain(nn.Dropout(0.5), nn.Conv2d(6, 6, 3)), "5"), images())
    assert halves.place == "2"
    assert not any(isinstance(module, nn.Dropout) for module in halves.prefix.modules())


def test_dropout_of_the_rest_is_that_of_the_network():
    model = adapted(chain(), "3")
    model[5] = nn.Sequential(model[5], nn.Dropout(0.5))
    halves = split_network(model, images())
    assert halves.evaluates


def test_dropout_that_tracing_fixes_keeps_validation_on_the_images():
    model = adapted(chain(), "3")
    model[5] = nn.Sequential(model[5], Drops())
    assert not split_network(model, images()).evaluates


@pytest.mark.parametrize("policy", ["adapt", "train"])
def test_norm_that_learns_is_not_in_the_prefix(policy):
    model = convpeft.attach(chain(), "lora", rank=2, include=["3"], norm=policy)
    assert split_network(model, images()).place == "0"


def test_norm_without_statistics_is_not_in_the_prefix():
    model = adapted(chain(nn.BatchNorm2d(6, track_running_stats=False), nn.Conv2d(6, 6, 3)), "5")
    assert split_network(model, images()).place == "2"


@pytest.mark.parametrize(
    ("between", "why"),
    [
        (Centres(), "the features of an image depend on the other images of the batch"),
        (Counts(), "what comes before the first trained layer is not the same twice"),
    ],
    ids=["centres", "counts"],
)
def test_prefix_that_is_no_function_of_an_image_is_refused(between, why):
    model = adapted(chain(between, nn.Conv2d(6, 6, 3)), "5")
    with pytest.raises(CannotSplit, match=f"^{why}$"):
        split_network(model, images())


def test_network_that_does_not_trace_is_refused():
    with pytest.raises(CannotSplit, match=r"^the network does not trace \(.*control flow"):
        split_network(adapted(Sorts(), "head"), images())


def test_network_that_is_trained_from_the_start_is_refused():
    with pytest.raises(CannotSplit, match=r"^the first layer is trained already"):
        split_network(adapted(chain(), "conv"), images())


def test_network_of_several_inputs_is_refused():
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = chain()

        def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
            return self.inner(x) * scale

    with pytest.raises(CannotSplit, match=r"^the network takes more than images$"):
        split_network(adapted(Scales(), "inner.3"), images())


def test_halves_that_are_not_the_network_are_refused(monkeypatch):
    model = adapted(chain(), "3")
    monkeypatch.setattr("convpeft.training.splitting._is_same", lambda *_: False)
    with pytest.raises(CannotSplit, match=r"^the two halves of the network do not add up to it$"):
        split_network(model, images())


def test_model_is_left_as_it_was():
    model = convpeft.attach(chain(), "lora", rank=2, include=["3"], norm="adapt")
    model[1].train()
    tensors = {name: (value.clone(), value._version) for name, value in adapter_tensors(model).items()}
    state, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    split_network(model, images())
    share_before_training(model, images())
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert "forward" not in model.__dict__
    for name, value in adapter_tensors(model).items():
        assert torch.equal(value, tensors[name][0]), name
        if isinstance(value, nn.Parameter):
            assert value._version == tensors[name][1], name


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_feature_comes_back_in_its_own_layout(layout):
    value = images(5).contiguous(memory_format=layout)
    order = (0, 1, 2) if layout is torch.contiguous_format else (1, 2, 0)
    feature = Feature((3, 5, 5), torch.float32, order)
    rows = feature.to_rows(value)
    assert rows.is_contiguous()
    back = feature.from_rows(rows.clone())
    assert torch.equal(back, value)
    assert back.stride() == value.stride()


def test_network_in_channels_last_hands_such_features_on():
    model = adapted(chain(), "3").to(memory_format=torch.channels_last)
    x = images().contiguous(memory_format=torch.channels_last)
    assert split_network(model, x).features[0].order == (1, 2, 0)
