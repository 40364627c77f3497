"""Merging: what is refused, and that a refusal changes nothing."""

import copy

import pytest
import torch
from torch import Tensor, nn

import convpeft
from contract.networks import randomise
from convpeft import adapters

X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def adapted(method: str = "lora", **arguments: object) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    return randomise(convpeft.attach(nn.Sequential(*layers).eval(), method, **arguments))


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    state = model.state_dict()
    return list(state) == list(before) and all(
        torch.equal(state[k].nan_to_num(), before[k].nan_to_num()) for k in before
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_result_that_is_not_finite_is_refused_and_changes_nothing(value: float) -> None:
    model = adapted(include=["conv", "linear"])
    with torch.no_grad():
        convpeft.trainable_parameters(model)[-1][0, 0] = value
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(convpeft.ModelError, match=r"layer '4': the merged weight is not finite.*NaN or overflow"):
        convpeft.merge(model)
    assert unchanged(model, before)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(convpeft.OptionError, match="no adapter is called 'other'"):
        convpeft.merge(adapted(), ["other"])


def test_one_name_may_be_given_as_a_string() -> None:
    model = adapted(name="only")
    expected = model(X)
    assert torch.allclose(convpeft.merge(model, "only")(X), expected, atol=1e-6)


def test_merged_norm_policy_carries_statistics_into_the_base() -> None:
    model = adapted(norm="adapt")
    mean = model[1].running_mean.clone()
    assert not torch.equal(mean, model[1]._buffers["running_mean"])
    convpeft.merge(model)
    assert type(model[1]) is nn.BatchNorm2d
    assert torch.equal(model[1].running_mean, mean)


def test_merge_forgets_where_the_base_came_from() -> None:
    model = adapted()
    model._convpeft_source = "timm/resnet18"
    twin = convpeft.merged(model)
    assert not hasattr(twin, "_convpeft_source")
    assert model._convpeft_source == "timm/resnet18"


def test_merged_head_says_its_size() -> None:
    model = convpeft.merge(adapted(num_classes=9))
    assert model[4].out_features == 9
    assert "out_features=9" in repr(model[4])


def test_merged_base_can_be_adapted_and_trained_again() -> None:
    model = convpeft.merge(adapted())
    assert all(parameter.requires_grad for parameter in model.parameters())
    convpeft.attach(model, "bitfit")
    model(X).sum().backward()


def test_merge_keeps_the_parameter_objects_that_an_optimiser_may_hold() -> None:
    model = adapted()
    weight = model[0]._parameters["weight"]
    convpeft.merge(model)
    assert model[0].weight is weight


def test_method_that_merges_in_evaluation_only_is_refused_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters.method_class("lora"), "mergeable", "eval")
    model = adapted().train()
    with pytest.raises(convpeft.ModelError, match=r"'lora' at '0' merges in evaluation only\. Call model\.eval\(\)"):
        convpeft.merge(model)
    convpeft.merge(model.eval())
