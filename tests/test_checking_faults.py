"""`convpeft.check`: every fault that can be planted is found, by the check that should find it."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convpeft
from checked_networks import Net, ReadsPast, failures
from convpeft.adapters import METHODS, Adapter, Branch
from convpeft.slots import SLOTS
from small_network import X, adapted, network

# Faults of the network


class ReadsPastOnce(Net):
    def middle(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.second._parameters["weight"], self.second._parameters["bias"], padding=1)
        return y + F.pad(self.second(x), (1, 1, 1, 1))


class ReadsPastInTraining(Net):
    def middle(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.second._parameters["weight"]) if self.training else self.second(x)


class ReadsPastWithoutGradient(Net):
    def middle(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.second._parameters["weight"].detach())


class ReadsData(Net):
    def middle(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.second.weight.data, self.second.bias.data)


class FusedCopy(Net):
    def __init__(self) -> None:
        super().__init__()
        gain = torch.rand(8, 1, 1, 1) + 0.5
        self.fused = self.second.weight.detach() * gain

    def middle(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.fused)


class FusesLate(Net):
    """The first call's effective weight is kept, whatever the adapter does later."""

    kept: Tensor | None = None

    def middle(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self.second.weight.detach().clone()
        return F.conv2d(x, self.kept)


class WritesData(Net):
    def middle(self, x: Tensor) -> Tensor:
        self.second.weight.data.clamp_(-0.05, 0.05)
        return self.second(x)


class Assigns(Net):
    def middle(self, x: Tensor) -> Tensor:
        self.second.weight = nn.Parameter(self.second.weight.detach().clamp(-0.05, 0.05))
        return self.second(x)


class FusesOnEval(Net):
    def train(self, mode: bool = True) -> nn.Module:
        if not mode and self.training:
            self.second.weight.data.mul_(0.5)
        return super().train(mode)


class OwnStatistics(Net):
    """A norm that convpeft does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def middle(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean((0, 2, 3)), 0.1)
        return self.second(x - self.mean.clone()[:, None, None])


class WritesBase(Net):
    """Weight decay by hand, in training only, on the base itself."""

    def middle(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.second._parameters["weight"].mul_(0.99)
        return self.second(x)


class AlwaysDrops(Net):
    def middle(self, x: Tensor) -> Tensor:
        return F.dropout(self.second(x), 0.5, training=True)


class Counts(Net):
    calls = 0

    def middle(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.second(x) + 0.01 * self.calls


class WithoutGradient(Net):
    def middle(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.second(x)


@pytest.mark.promise("B07")
@pytest.mark.parametrize(
    ("fault", "claim", "detail"),
    [
        (ReadsPast, "adapters reached", "'second': its base weight is read past the adapter"),
        (ReadsPast, "merged equals adapted", "some code reads the base's weights past it"),
        (ReadsPastOnce, "merged equals adapted", "some code reads the base's weights past it"),
        (ReadsPastInTraining, "adapters reached", "'second': its base weight is read past the adapter in training"),
        (ReadsPastWithoutGradient, "adapters reached", "read past the adapter and without gradient"),
        (ReadsData, "adapters reached", "'second' acts but gets no gradient"),
        (FusedCopy, "adapters reached", "'second': its weight was copied to 'fused'"),
        (FusesLate, "disabled and detached", "with the adapter disabled the output is not the base's"),
        (WritesData, "no weight written", "'second.weight'"),
        (Assigns, "identity in evaluation", "ModelError: Conv2d.weight is computed by an adapter"),
        (FusesOnEval, "no weight written", "'second.weight'"),
        (OwnStatistics, "base frozen", "changed: 'mean'"),
        (WritesBase, "base frozen", "changed: 'second.weight'"),
        (AlwaysDrops, "same output twice", "something is random there"),
        (Counts, "same output twice", "something is random there"),
        (WithoutGradient, "adapters reached", "'second' acts but gets no gradient"),
    ],
)
def test_fault_of_a_network_is_found(fault: type[nn.Module], claim: str, detail: str) -> None:
    report = convpeft.check(fault(), example=X)
    assert report[claim].status == "fail", str(report)
    assert detail in report[claim].detail
    assert not report.passed


def test_seeded_noise_does_not_hide_what_else_holds() -> None:
    assert failures(AlwaysDrops()) == {"same output twice"}


def test_bits_are_not_compared_where_two_calls_always_differ() -> None:
    report = convpeft.check(Counts(), example=X)
    for claim in ("identity in evaluation", "saved and loaded", "disabled and detached", "merged equals adapted"):
        assert report[claim].status == "skipped"
        assert "two equal calls differ" in report[claim].detail


@pytest.mark.promise("B07")
def test_branch_on_a_layer_that_is_never_called_is_found() -> None:
    report = convpeft.check(ReadsPast(), method="conv-adapter", example=X)
    assert report["adapters reached"].status == "fail"
    assert "'second': the branch never runs" in report["adapters reached"].detail


def test_attention_reads_the_adapted_weight_without_calling_the_layer() -> None:
    class Attends(Net):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def tail(self, x: Tensor) -> Tensor:
            x = x.flatten(2).transpose(1, 2)
            return self.head(self.attention(x, x, x)[0].mean(1))

    report = convpeft.check(Attends(), example=X)
    assert report.passed, str(report)
    assert report["layers in use"].figure == 0


def test_layer_that_is_never_used_is_information() -> None:
    class Spare(Net):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Conv2d(3, 8, 3)

    report = convpeft.check(Spare(), example=X)
    assert report.passed
    assert report["layers in use"].status == "note"
    assert "'spare'" in report["layers in use"].detail


def test_adapter_without_any_part_in_the_output_fails() -> None:
    class Ignores(Net):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) * self.gain

    assert "adapters reached" in failures(Ignores())


# Faults between attaching and checking


def test_live_norm_put_in_after_attaching_is_found() -> None:
    report = convpeft.check(nn.SyncBatchNorm.convert_sync_batchnorm(adapted()), example=X)
    assert report["norms guarded"].status == "fail"
    assert "replaced after attaching: '1'" in report["norms guarded"].detail
    assert {finding.status for finding in report.findings[2:]} == {"skipped"}


def test_adapter_moved_to_another_layer_is_found() -> None:
    model = convpeft.attach(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)), "lora", include=["conv"])
    slots = [layer._modules[SLOTS] for layer in model]
    model[0]._modules[SLOTS], model[1]._modules[SLOTS] = slots[1], slots[0]
    report = convpeft.check(model, example=X)
    assert report["adapters in place"].status == "fail"
    assert "'0' holds the adapter of '1'" in report["adapters in place"].detail


def test_adapted_layer_replaced_by_a_plain_one_is_found() -> None:
    model = adapted()
    model[0] = nn.Conv2d(3, 8, 3)
    assert failures(model) == {"adapters in place"}


def test_forward_put_on_an_adapted_layer_is_found() -> None:
    model = adapted()
    model[0].forward = lambda x: x[:, :1].repeat(1, 8, 1, 1)
    assert failures(model) == {"adapters in place"}


# Faults of a method


@pytest.fixture
def registered() -> Iterator[None]:
    """Take methods that a test registers off again."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


class _Scales(Adapter):
    """Right in itself: a gain on the weight."""

    def __init__(self, site) -> None:
        super().__init__(site)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight * (1 + self.gain), bias


def _not_identity(body: type) -> type:
    class Planted(body, name="planted"):
        def forward(self, weight, bias):
            return weight * (1.001 + self.gain), bias

    return Planted


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 1.01


def _wrong_gradient(body: type) -> type:
    class Planted(body, name="planted"):
        def forward(self, weight, bias):
            return weight * (1 + _WrongGradient.apply(self.gain)), bias

    return Planted


def _wrong_merge(body: type) -> type:
    class Planted(body, name="planted"):
        """Runs beside the layer and lacks the bias there, which its map has."""

        @property
        def runs_beside(self) -> bool:
            return True

        def beside(self, given, output):
            return output * (1 + self.gain) + self.gain

    return Planted


def _forgets_a_tensor(body: type) -> type:
    class Planted(body, name="planted"):
        def start(self, weight, bias, generator):
            self.factor = 1 + 0.1 * torch.rand(1)

        def forward(self, weight, bias):
            return weight * (1 + self.gain * getattr(self, "factor", 1)), bias

    return Planted


def _writes_the_base(body: type) -> type:
    class Planted(body, name="planted"):
        def forward(self, weight, bias):
            if self.training:
                weight.data.mul_(1.001)
            return weight * (1 + self.gain), bias

    return Planted


def _differs_in_training(body: type) -> type:
    class Planted(body, name="planted"):
        def forward(self, weight, bias):
            return weight * (1 + self.gain + (1e-3 if self.training else 0)), bias

    return Planted


def _breaks(body: type) -> type:
    class Planted(Branch, name="planted"):
        kinds = ("conv",)

        def __init__(self, site) -> None:
            super().__init__(site)
            self.gain = nn.Parameter(torch.zeros(1))

        def forward(self, given, output):
            raise RuntimeError("a branch\nthat breaks")

    return Planted


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("plant", "claim"),
    [
        (_not_identity, "identity in evaluation"),
        (_not_identity, "identity in training"),
        (_differs_in_training, "identity in training"),
        (_wrong_gradient, "gradients"),
        (_wrong_merge, "merged equals adapted"),
        (_forgets_a_tensor, "saved and loaded"),
        (_writes_the_base, "base frozen"),
        (_breaks, "identity in evaluation"),
    ],
)
def test_fault_of_a_method_is_found(plant: Callable[[type], type], claim: str) -> None:
    assert not failures(network(), method=_right(_Scales))
    plant(_Scales)
    assert claim in failures(network(), method="planted")


def _right(body: type) -> str:
    type("Right", (body,), {}, name="right")
    return "right"


@pytest.mark.usefixtures("registered")
def test_error_inside_a_network_is_one_line_of_the_report() -> None:
    _breaks(_Scales)
    detail = convpeft.check(network(), method="planted", example=X)["identity in evaluation"].detail
    assert detail == "RuntimeError: a branch that breaks"


def test_gradients_that_the_network_itself_gets_wrong_are_not_the_adapters() -> None:
    class Bends(Net):
        def middle(self, x: Tensor) -> Tensor:
            return self.second(_WrongGradient.apply(x))

    report = convpeft.check(Bends(), example=X)
    assert report.passed
    assert "the network's own gradients disagree" in report["gradients"].detail
