"""C04: training an adapter changes no parameter and no buffer of the base, whatever the norm policy."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import convpeft
from contract.methods_under_test import FEWER, METHODS, attach_anything, train_steps
from contract.networks import Plan, plans, randomise
from measuring import counted

pytestmark = [
    pytest.mark.contract,
    pytest.mark.promise("C04"),
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
]


def digests(model: nn.Module, marker: str | None = None) -> dict[str, str]:
    """SHA-256 of every tensor of the base, counters included; with a marker, of the adapters so named."""
    state = {k: v for k, v in model.state_dict().items() if (marker or "convpeft") in k}
    if marker is None:
        state = {k: v for k, v in model.state_dict().items() if "convpeft" not in k.split(".")}
    return {k: hashlib.sha256(v.contiguous().numpy().tobytes()).hexdigest() for k, v in state.items()}


def train(model: nn.Module, x: Tensor, steps: int = 3) -> None:
    train_steps(model, x, torch.optim.AdamW(convpeft.param_groups(model, lr=0.05, weight_decay=0.1)), steps)


@pytest.mark.parametrize("method", METHODS)
@FEWER
@given(plan=plans(), data=st.data())
def test_training_leaves_the_base_alone(method: str, plan: Plan, data: st.DataObject) -> None:
    model, x = plan.build(), plan.example()
    before = digests(model)
    policy = data.draw(st.sampled_from(convpeft.method_info(method).norm_policies))
    attach_anything(model, method, norm=policy, num_classes=data.draw(st.sampled_from([None, 3])))
    try:
        train(model, x)
    except ValueError as error:  # torch has no statistics of one number to offer
        assert "more than 1 value per channel" in str(error)
    assert digests(model) == before
    counted("networks trained, over all methods")
    counted("digests compared", len(before))


@FEWER
@given(plan=plans(norms=("batch",)), method=st.sampled_from(METHODS))
def test_running_the_disabled_model_in_train_mode_leaves_the_base_alone(plan: Plan, method: str) -> None:
    model, x = plan.build(), plan.example()
    attach_anything(model, method, norm="adapt").train()
    before = digests(model)
    with convpeft.disabled(model):
        model(x)
    assert digests(model) == before


@pytest.mark.parametrize("policy", ["adapt", "train"])
def test_live_policies_move_statistics_of_the_adapter(policy: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    convpeft.attach(model, "lora", norm=policy)
    before = model[1].running_mean.clone()
    train(model, torch.randn(8, 3, 8, 8) + 3, steps=1)
    assert not torch.equal(model[1].running_mean, before)
    assert torch.equal(model[1]._buffers["running_mean"], before)


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.BatchNorm2d(4)])
@pytest.mark.parametrize("policy", ["frozen", "adapt", "train"])
def test_norms_with_statistics_keep_those_of_the_base(norm: nn.Module, policy: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(144, 2))
    before = digests(model)
    convpeft.attach(model, "lora", norm=policy)
    train(model, torch.randn(8, 3, 8, 8) + 3)
    convpeft.detach(model)
    assert digests(model) == before


def test_training_a_second_adapter_leaves_the_first_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    randomise(convpeft.attach(model, "lora", name="first", norm="train"))
    convpeft.attach(model, "lora", name="second", norm="frozen")
    before = digests(model, "first")
    assert before
    train(model, torch.randn(8, 3, 8, 8) + 3)
    assert digests(model, "first") == before


def test_norm_with_a_patched_forward_is_frozen_or_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    own = model[1].forward
    model[1].forward = lambda x: own(x)  # what accelerate's and other libraries' hooks do
    before = digests(model)
    try:
        convpeft.attach(model, "lora")
    except convpeft.ModelError as error:
        assert "'1'" in str(error)
        return
    train(model, torch.randn(8, 3, 8, 8) + 3)
    assert digests(model) == before


def test_hooks_on_a_frozen_norm_still_fire() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)).train()
    seen: list[str] = []
    model[1].register_forward_hook(lambda *_: seen.append("before attach"))
    convpeft.attach(model, "lora")
    model[1].register_forward_hook(lambda *_: seen.append("after attach"))
    model(torch.randn(2, 3, 8, 8))
    assert seen == ["before attach", "after attach"]
