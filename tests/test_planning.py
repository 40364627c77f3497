"""Several methods in one adapter: where each goes, what is refused, and one file for all."""

from pathlib import Path

import pytest
import torch
from torch import nn

import convpeft
from contract.networks import randomise, relative_error
from convpeft import adapters
from convpeft.adapters import method_class


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 4)
    ).eval()


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def mixed(**more: object) -> nn.Module:
    options = {"lora": {"rank": 2, "include": ["3"]}, "bitfit": {"include": ["norm"]}, "cp": {"include": ["0"]}}
    return convpeft.attach(network(), "lora+bitfit+cp", **options, **more)


def test_each_method_goes_to_its_own_layers() -> None:
    names = [name for name, parameter in mixed().named_parameters() if parameter.requires_grad]
    found = {(name.split(".")[0], name.split(":")[1].split(".")[0]) for name in names}
    assert found == {("0", "cp"), ("1", "bitfit"), ("3", "lora")}


def test_common_include_holds_for_methods_without_their_own() -> None:
    model = convpeft.attach(network(), "lora+bitfit", include=["3"], bitfit={"include": ["5"]})
    assert set(convpeft.count(model).layers) == {"3", "5"}


def test_mixed_methods_on_one_layer_act_in_the_order_given() -> None:
    model = convpeft.attach(network(), "ssf+lora", include=["conv"])
    randomise(model)
    parts = [part for _, part in model[3].convpeft.parts("default")]
    weight, bias = model[3]._parameters["weight"], model[3]._parameters["bias"]
    for part in parts:
        weight, bias = part(weight, bias)
    assert [part.method_name for part in parts] == ["ssf", "lora"]
    assert torch.equal(model[3].weight, weight)
    assert not torch.equal(parts[0](*parts[1](model[3]._parameters["weight"], None))[0], weight)


def test_method_that_replaces_the_weight_comes_first() -> None:
    model = convpeft.attach(network(), "lora+full", norm="frozen")
    randomise(model)
    loss = model(X).square().sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in convpeft.trainable_parameters(model))


def test_fresh_mixed_adapter_changes_nothing() -> None:
    assert torch.equal(mixed()(X), network()(X))
    every = convpeft.attach(network(), "+".join(m for m in convpeft.list_methods() if m not in ("norm-tuning",)))
    assert torch.equal(every(X), network()(X))


def test_mixed_adapter_is_one_file(tmp_path: Path) -> None:
    model = randomise(mixed(num_classes=3))
    convpeft.save(model, tmp_path / "adapter", classes=["a", "b", "c"])
    loaded = convpeft.load(network(), tmp_path / "adapter")
    assert torch.equal(loaded(X), model(X))
    convpeft.save(loaded, tmp_path / "again")
    for file in (tmp_path / "adapter").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    assert relative_error(convpeft.merged(loaded)(X), model(X)) <= 1e-5


def test_each_method_trains_at_its_own_rate_by_default() -> None:
    rates = {id(parameter): group["lr"] for group in convpeft.param_groups(mixed()) for parameter in group["params"]}
    wanted = {convpeft.method_info(name).learning_rate for name in ("lora", "bitfit", "cp")}
    assert set(rates.values()) == wanted
    assert {group["lr"] for group in convpeft.param_groups(mixed(), lr=0.1)} == {0.1}


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lora+lora", {}, "names a method twice"),
        ("lora+bitfti", {}, r"method='bitfti' does not exist\. Did you mean 'bitfit'"),
        ("lora+bitfit", {"rank": 4}, r"option 'rank' belongs to none of the mixed methods .* lora=\{'rank': \.\.\.\}"),
        ("lora+bitfit", {"lora": 4}, "lora=4: expected the options of method 'lora'"),
        ("lora+bitfit", {"lora": {"rnak": 4}}, "method 'lora' has no option 'rnak'. Did you mean 'rank'"),
        ("lora+bitfit", {"lora": {"include": ["9"]}}, "include='9' names no layer"),
    ],
)
def test_mistakes_in_a_mix_are_named(method: str, options: dict, message: str) -> None:
    model = network()
    with pytest.raises(convpeft.OptionError, match=message):
        convpeft.attach(model, method, **options)
    assert type(model[0]) is nn.Conv2d


def test_methods_that_share_no_norm_policy_are_refused() -> None:
    with pytest.raises(
        convpeft.OptionError, match="'bitfit' contradicts norm='train': both would set the same norm parameters"
    ):
        convpeft.attach(network(), "lora+bitfit", norm="train")


def test_methods_without_a_common_norm_policy_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """All methods of the library go with frozen norms; one of the user's own need not."""
    monkeypatch.setattr(adapters, "METHODS", dict(adapters.load_methods()))

    class Live(method_class("full"), name="live"):
        norm_policies = ("train",)

    model = network()
    with pytest.raises(convpeft.OptionError) as refusal:
        convpeft.attach(model, "live+bitfit", live={"include": ["0"]}, bitfit={"include": ["3"]})
    assert str(refusal.value) == (
        "methods 'live' and 'bitfit' go with no common norm policy. Attach them under two names."
    )
    assert type(model[0]) is nn.Conv2d


def test_path_that_begins_like_the_word_block_starts_no_trial_run() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(Stage(), Stage())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("the model was run")

    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    model = convpeft.attach(Named(), "lora", include="blocks.1")
    assert set(convpeft.count(model).layers) == {"blocks.1.a", "blocks.1.b"}
