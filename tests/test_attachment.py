"""Attaching: options, ranks, heads, layers trained whole, and what each error says."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import convpeft
from convpeft.injection import adapted_layers


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()


X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def trained_layers(model: nn.Module) -> set[str]:
    return set(convpeft.count(model).layers)


# Options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rnak": 4}, r"method 'lora' has no option 'rnak'\. Did you mean 'rank'\?.*alpha.*rslora"),
        ({"num_class": 4}, r"has no option 'num_class'\. Did you mean 'num_classes'\?"),
        ({"rank": "8"}, r"method 'lora': rank='8' is not int\. Default: 8"),
        ({"rank": 2.0}, r"rank=2.0 is not int\. Default: 8\.$"),
        ({"rank": True}, r"rank=True is not int"),
        ({"rank": None}, r"rank=None is not int"),
        ({"alpha": "1"}, r"alpha='1' is not float or None"),
        ({"rslora": 1}, r"rslora=1 is not bool"),
        ({"rank_policy": "clmap"}, r"rank_policy='clmap' does not exist\. Did you mean 'clamp'\?"),
        ({"norm": "froze"}, r"norm='froze' is not a norm policy\. Known: frozen, adapt, train"),
        ({"num_classes": 0}, r"num_classes=0 is out of range, it must be at least 1"),
        ({"num_classes": True}, r"num_classes=True is out of range"),
        ({"include": ["cnov"]}, r"include='cnov' names no layer of this model\. Did you mean 'conv'\?"),
        ({"exclude": ["cnov"]}, r"exclude='cnov' names no layer"),
        ({"also_train": ["stem"]}, r"'stem' names no layer"),
        ({"head": "fc"}, r"head='fc' is not a Linear or 1x1 convolution"),
    ],
)
def test_wrong_option_is_refused_on_one_line_and_changes_nothing(options: dict, message: str) -> None:
    model = network()
    with pytest.raises(convpeft.OptionError, match=message) as refusal:
        convpeft.attach(model, "lora", **options)
    assert "\n" not in str(refusal.value)
    assert list(adapted_layers(model)) == []
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_unknown_method_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        convpeft.OptionError, match=r"method='lroa' does not exist\. Did you mean 'lora'\? Known: adalora, bitfit"
    ):
        convpeft.attach(network(), "lroa")


def test_method_without_options_says_so() -> None:
    with pytest.raises(convpeft.OptionError, match=r"'full' has no option 'rank'\."):
        convpeft.attach(network(), "full", rank=3)


def test_alpha_takes_an_integer() -> None:
    convpeft.attach(network(), "lora", alpha=4)


def test_method_that_contradicts_the_norm_policy_is_refused() -> None:
    with pytest.raises(convpeft.OptionError, match=r"'norm-tuning' contradicts norm='train'.*frozen or adapt"):
        convpeft.attach(network(), "norm-tuning", norm="train")


def test_nothing_to_adapt_is_refused() -> None:
    with pytest.raises(convpeft.OptionError, match=r"'lora' finds no layer to adapt in this model\. Give num_classes"):
        convpeft.attach(nn.Sequential(nn.ReLU()), "lora")


# Ranks.


def ranks(model: nn.Module) -> dict[str, int]:
    return {name.split(".convpeft")[0]: p.shape[1] for name, p in model.named_parameters() if name.endswith("lora.up")}


def test_rank_is_clamped_to_what_each_layer_takes() -> None:
    assert ranks(convpeft.attach(network(), "lora", rank=5)) == {"0": 5, "3": 4}


def test_clamped_scale_is_that_of_the_rank_asked_for() -> None:
    model = convpeft.attach(network(), "lora", rank=10, alpha=5.0)
    with torch.no_grad():
        for parameter in convpeft.trainable_parameters(model):
            parameter.fill_(1.0)
    delta = model[3].weight - network()[3].weight
    assert torch.allclose(delta, torch.full_like(delta, 4 * 5.0 / 10))  # four columns of ones, alpha / rank


def test_rank_policy_error_names_layer_rank_limit_and_remedies() -> None:
    with pytest.raises(convpeft.OptionError) as refusal:
        convpeft.attach(network(), "lora", rank=5, rank_policy="error")
    assert str(refusal.value) == (
        "layer '3' (depthwise, conv, weight (8, 1, 3, 3)): rank=5 is too large, this layer takes at most 4. "
        'Lower rank, use rank_policy="clamp" (the default), or exclude=["3"].'
    )


def test_rank_policy_skip_leaves_the_layer_out() -> None:
    assert ranks(convpeft.attach(network(), "lora", rank=5, rank_policy="skip")) == {"0": 5}


@pytest.mark.parametrize("policy", ["clamp", "skip"])
def test_layer_that_takes_no_rank_is_skipped(policy: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 8, 3))
    assert set(ranks(convpeft.attach(model, "lora", rank=1, rank_policy=policy))) == {"1"}


def test_rank_that_fits_every_layer_passes_the_error_policy() -> None:
    assert ranks(convpeft.attach(network(), "lora", rank=4, rank_policy="error")) == {"0": 4, "3": 4}


# Heads.


def test_new_head_has_its_classes_and_the_old_one_stays() -> None:
    model = network()
    expected = model(X)
    convpeft.attach(model, "lora", num_classes=7)
    assert model(X).shape == (2, 7)
    with convpeft.disabled(model):
        assert torch.equal(model(X), expected)


def test_old_head_sits_on_the_adapted_features_inside_its_block() -> None:
    model = convpeft.attach(network(), "lora", num_classes=7)
    with torch.no_grad():
        for parameter in convpeft.trainable_parameters(model):
            parameter.add_(0.1)
    features = model[:6](X)
    with convpeft.old_head(model):
        assert torch.equal(model(X), nn.functional.linear(features, network()[6].weight, network()[6].bias))
    assert model(X).shape == (2, 7)


def test_new_head_starts_like_a_layer_of_torch() -> None:
    model = convpeft.attach(network(), "lora", num_classes=500, generator=torch.Generator().manual_seed(0))
    bound = 1 / math.sqrt(8)
    for tensor in (model[6].weight, model[6].bias):
        assert bound * 0.95 < tensor.abs().max() <= bound
        assert tensor.mean().abs() < 0.05


def test_new_head_can_be_a_pointwise_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    convpeft.attach(model, "probe", num_classes=6)
    assert model(X).shape == (2, 6)
    convpeft.merge(model)
    assert model(X).shape == (2, 6)
    assert model[1].out_channels == 6


def test_new_head_can_be_put_on_a_named_layer() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(243, 8), nn.Linear(8, 4))
    convpeft.attach(model, "probe", head="1", num_classes=8)
    assert trained_layers(model) == {"1"}


def test_new_head_without_a_classifier_is_refused() -> None:
    with pytest.raises(convpeft.ModelError, match="no Linear or 1x1 convolution was found to be the classifier"):
        convpeft.attach(nn.Sequential(nn.Conv2d(3, 8, 3)), "lora", num_classes=3)


def test_head_is_not_adapted_beside_a_new_head() -> None:
    model = convpeft.attach(network(), "lora", include=["conv", "linear"], num_classes=7)
    assert not any(name.startswith("6.") and "lora" in name for name, _ in model.named_parameters())


# Layers trained whole.


def test_also_train_trains_layers_whole() -> None:
    model = convpeft.attach(network(), "lora", rank=2, also_train=["0"])
    assert convpeft.count(model).layers == {"0": 8 * 27 + 8, "3": 2 * (8 + 9)}


def test_also_train_takes_norms_and_is_saved(tmp_path) -> None:
    model = convpeft.attach(network(), "lora", rank=2, also_train=["1", "head"])
    assert convpeft.count(model).layers["1"] == 16
    with torch.no_grad():
        for parameter in convpeft.trainable_parameters(model):
            parameter.add_(0.1)
    convpeft.save(model, tmp_path / "adapter")
    assert torch.equal(convpeft.load(network(), tmp_path / "adapter")(X), model(X))


# Sites.


def test_default_sites_leave_the_head_out() -> None:
    assert trained_layers(convpeft.attach(network(), "lora")) == {"0", "3"}


def test_include_and_exclude_choose_the_sites() -> None:
    model = convpeft.attach(network(), "lora", include=["conv", "head"], exclude=["depthwise"])
    assert trained_layers(model) == {"0", "6"}
    assert trained_layers(convpeft.attach(network(), "lora", exclude="3")) == {"0"}


def test_single_layer_is_a_model() -> None:
    layer = nn.Conv2d(3, 8, 3)
    convpeft.attach(layer, "lora")
    assert convpeft.count(layer).trainable == convpeft.count(layer).layers[""]
    assert type(convpeft.detach(layer)) is nn.Conv2d


def test_attach_freezes_the_base_and_detach_thaws_what_was_trainable() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    convpeft.attach(model, "lora")
    assert not any(p.requires_grad for name, p in model.named_parameters() if "convpeft" not in name)
    convpeft.detach(model)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["0.weight"]


def test_detach_of_an_unknown_name_is_refused() -> None:
    with pytest.raises(
        convpeft.OptionError, match=r"no adapter is called 'defualt' on this model\. Did you mean 'default'"
    ):
        convpeft.detach(convpeft.attach(network(), "lora"), "defualt")


@pytest.mark.parametrize(
    "use",
    [
        convpeft.detach,
        convpeft.merge,
        convpeft.merged,
        convpeft.trainable_parameters,
        convpeft.param_groups,
        lambda model: convpeft.set_active(model, []),
        lambda model: convpeft.save(model, "never written"),
        lambda model: convpeft.disabled(model).__enter__(),
    ],
)
def test_model_without_adapters_is_refused(use) -> None:
    with pytest.raises(convpeft.ModelError, match=r"no adapter is attached to this model\. Call convpeft\.attach"):
        use(network())


def test_parts_attached_separately_are_refused_as_one_model() -> None:
    model = nn.Sequential(network(), nn.Linear(4, 4))
    convpeft.attach(model[0], "lora")
    convpeft.attach(model[1], "lora", include=["linear"])
    with pytest.raises(convpeft.ModelError, match="attached to separately"):
        convpeft.merge(model)


def test_part_of_an_adapted_model_is_refused() -> None:
    model = convpeft.attach(nn.Sequential(network(), nn.Linear(4, 4)), "lora", include=["conv", "linear"])
    with pytest.raises(convpeft.ModelError, match="part of the model"):
        convpeft.detach(model[0])
    convpeft.detach(model)
    assert list(adapted_layers(model)) == []


def test_attach_returns_the_model_itself() -> None:
    model = network()
    assert convpeft.attach(model, "lora") is model
    assert convpeft.merge(model) is model


def test_start_on_top_of_an_adapter_in_training_is_what_that_one_settles_to() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 2)).train()
    convpeft.attach(model, "residual-serial", name="first")
    with torch.no_grad():
        for parameter in convpeft.trainable_parameters(model):
            parameter.add_(0.3)
    x = torch.randn(4, 3, 8, 8)
    model(x)
    expected = model.eval()(x)
    convpeft.attach(model.train(), "full", name="second", norm="frozen")
    assert torch.allclose(model.eval()(x), expected, atol=1e-5)


def test_branch_takes_an_image_without_a_batch_axis() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 3, padding=1)
    convpeft.attach(layer, "conv-adapter", include=["conv"], gamma=2, init="paper")
    x = torch.randn(4, 6, 6)
    assert torch.allclose(layer(x), layer(x.unsqueeze(0))[0], atol=1e-6)


def test_branch_on_a_block_stands_for_its_layers() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    for include, expected in ((["0"], {"0"}), (["0", "0.second"], {"0", "0.second"}), (["0.first"], {"0.first"})):
        model = convpeft.attach(nn.Sequential(Block(), Block()), "lite-residual", include=include)
        assert set(convpeft.count(model).layers) == expected


class Second(nn.Module):
    """A convolution that is called in a way of the caller's choice."""

    def __init__(self, call: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.call = nn.Conv2d(4, 4, 3, padding=1), call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(self.conv, x)


class Pair(nn.Conv2d):
    """A convolution that returns its input too."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().forward(x), x


class Overwriting(nn.Conv2d):
    """A convolution that overwrites its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.mul_(2))


def test_branch_on_a_layer_that_is_called_with_a_keyword_is_refused() -> None:
    model = convpeft.attach(Second(lambda conv, x: conv(input=x)), "conv-adapter", include=["conv"])
    with pytest.raises(convpeft.ModelError) as refusal:
        model(torch.randn(2, 4, 6, 6))
    assert str(refusal.value) == ("a Conv2d with a branch was not called with one tensor. Exclude that layer or block.")


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (Pair, "a Pair with a branch does not return one tensor. Exclude that layer or block."),
        (Overwriting, "a Overwriting with a branch changes its input in place. Exclude that layer or block."),
    ],
)
def test_branch_on_a_layer_that_is_no_function_of_one_tensor_is_refused(layer: type[nn.Conv2d], said: str) -> None:
    model = convpeft.attach(nn.Sequential(layer(4, 4, 3, padding=1)), "conv-adapter", include=["conv"])
    with pytest.raises(convpeft.ModelError) as refusal:
        model(torch.randn(2, 4, 6, 6))
    assert str(refusal.value) == said
