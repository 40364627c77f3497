"""`convpeft.check`: good networks pass and stay as they were; what cannot be checked says so."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

import convpeft
from architectures.networks import AudioNet, UNet
from checked_networks import Net, ReadsPast, failures
from small_network import X, adapted, network

CLAIMS = (
    "adapters in place",
    "norms guarded",
    "same output twice",
    "identity in evaluation",
    "identity in training",
    "gradients",
    "merged equals adapted",
    "base frozen",
    "saved and loaded",
    "disabled and detached",
    "adapters reached",
    "no weight written",
    "layers in use",
)


# Networks on which adapters keep their promises


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto"])
def test_public_network_passes(name: str) -> None:
    report = convpeft.check(timm.create_model(name, pretrained=False), example=torch.randn(2, 3, 64, 64))
    assert report.passed, str(report)
    assert [finding.name for finding in report.findings] == list(CLAIMS)


@pytest.mark.parametrize(
    "make", [lambda: UNet(width=2, whole=False), AudioNet, Net, lambda: nn.Sequential(nn.Linear(5, 3))]
)
def test_other_network_passes_on_an_input_that_is_found(make: Callable[[], nn.Module]) -> None:
    report = convpeft.check(make(), method="full" if make().__class__ is nn.Sequential else "dora")
    assert report.passed, str(report)


@pytest.mark.parametrize("method", ["adalora", "residual-serial", "norm-tuning", "bitfit", "lora+bitfit"])
def test_method_with_hooks_or_norms_of_its_own_passes(method: str) -> None:
    assert not failures(network(), method=method)


def test_branch_passes_and_is_not_merged() -> None:
    report = convpeft.check(network(), method="conv-adapter", example=X)
    assert report.passed
    assert report["merged equals adapted"].status == "skipped"
    assert "never merges" in report["merged equals adapted"].detail


def test_adapter_with_a_new_head_passes() -> None:
    assert not failures(convpeft.attach(network(), "lora", num_classes=7))


def test_adapters_on_top_of_each_other_pass() -> None:
    assert not failures(convpeft.attach(adapted(), "dora", name="second"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_network_of_another_precision_passes(dtype: torch.dtype) -> None:
    assert not failures(network().to(dtype), example=X.to(dtype))


def test_identity_of_a_trained_adapter_is_not_asked_for() -> None:
    report = convpeft.check(adapted(), example=X)
    assert report.passed
    assert report["identity in evaluation"].status == "skipped"


def test_saved_adapter_is_loaded_and_checked(tmp_path) -> None:
    path = convpeft.save(adapted("dora"), tmp_path / "adapter")
    report = convpeft.check(network(), adapter=path, example=X)
    assert report.passed
    assert report.method == "dora"


@pytest.mark.parametrize("make", [network, adapted])
def test_model_keeps_every_bit_mode_and_random_state(make: Callable[[], nn.Module]) -> None:
    model = make()
    model[0].train()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    grads, state = [p.requires_grad for p in model.parameters()], torch.get_rng_state()
    types = [type(module) for module in model.modules()]
    convpeft.check(model, example=X)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == grads
    assert [type(module) for module in model.modules()] == types
    assert torch.equal(torch.get_rng_state(), state)


def test_outputs_may_be_nested() -> None:
    class Nested(Net):
        def forward(self, x: Tensor) -> dict[str, object]:
            y = super().forward(x)
            return {"logits": y, "more": [y * 2, (y.argmax(1), None)]}

    assert not failures(Nested())


def test_several_inputs_are_given_as_a_sequence() -> None:
    class Pair(Net):
        def forward(self, x: Tensor, gain: Tensor) -> Tensor:
            return super().forward(x) * gain

    assert not failures(Pair(), example=(X, torch.tensor(2.0)))


# What is refused, and the report


def test_method_for_a_model_that_has_an_adapter_is_refused() -> None:
    with pytest.raises(convpeft.OptionError, match="the model has an adapter already, and that one is checked"):
        convpeft.check(adapted(), method="dora")


def test_method_beside_an_adapter_file_is_refused(tmp_path) -> None:
    with pytest.raises(convpeft.OptionError, match="method and adapter exclude each other"):
        convpeft.check(network(), method="dora", adapter=tmp_path)


def test_model_without_an_active_adapter_is_refused() -> None:
    model = adapted()
    convpeft.set_active(model, [])
    with pytest.raises(convpeft.ModelError, match="no adapter is active, so there is nothing to check"):
        convpeft.check(model, example=X)


def test_model_that_runs_on_no_usual_input_asks_for_one() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 77 * 77, 2))
    with pytest.raises(convpeft.ModelError, match=r"runs on no blank image.*Give an input: convpeft.check\(model, exa"):
        convpeft.check(model)


def test_forward_of_two_arguments_asks_for_an_input() -> None:
    class Pair(Net):
        def forward(self, x: Tensor, gain: Tensor) -> Tensor:
            return super().forward(x) * gain

    with pytest.raises(convpeft.ModelError, match=r"the model cannot be checked.*'gain'"):
        convpeft.check(Pair())


def test_example_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(convpeft.ModelError, match=r"the model does not run on the example .*Give another"):
        convpeft.check(network(), example=torch.zeros(2, 5, 9, 9))


def test_size_that_does_for_evaluation_alone_is_passed_over() -> None:
    class Deep(Net):
        def middle(self, x: Tensor) -> Tensor:
            assert not self.training or x.shape[-1] < 200, "too large to train on"
            return super().middle(x)

    report = convpeft.check(Deep())
    assert report.passed
    assert report.shapes == ((2, 3, 32, 32),)


def test_output_without_numbers_is_refused() -> None:
    class Names(Net):
        def forward(self, x: Tensor) -> list[int]:
            return super().forward(x).argmax(1).tolist()

    with pytest.raises(convpeft.ModelError, match="it returns no tensor of floating-point numbers"):
        convpeft.check(Names(), example=X)


def test_model_that_cannot_be_copied_is_one_line() -> None:
    model = network()
    model.cache = model[0].weight * 2  # part of a graph
    with pytest.raises(convpeft.ModelError, match="cannot be copied, and a check works on copies"):
        convpeft.check(model, example=X)


def test_report_names_what_failed_in_its_last_line() -> None:
    report = convpeft.check(ReadsPast(), example=X)
    last = str(report).splitlines()[-1]
    assert last.startswith("lora on ")
    assert "checks failed" in last
    assert "adapters reached" in last


def test_report_becomes_plain_values() -> None:
    told = convpeft.check(network(), example=X).to_dict()
    assert told["passed"] is True
    assert told["inputs"] == [[2, 3, 9, 9]]
    assert [check["name"] for check in told["checks"]] == list(CLAIMS)
    assert told["checks"][0] | {"meaning": ""} == {
        "name": "adapters in place",
        "status": "pass",
        "figure": 0,
        "limit": 0,
        "unit": "faults",
        "meaning": "",
        "detail": "",
    }
