"""A combined adapter's weight is W + sum of coefficient * (numpy formula of W, minus W), in every form it takes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import convpeft
from banked import IMAGES, adapted, network, saved
from contract.methods_under_test import MAPS, METHODS, reference_of
from contract.networks import adapter_tensors, randomise, relative_error
from convpeft.adapter_file import CONFIG, WEIGHTS
from reference.convolution import canonical

TOLERANCE = 1e-6  # of float32; sums of a few numbers in float64, rounded once
SHARES = (0.3, -1.25)


def parameters(model: nn.Module) -> dict[str, np.ndarray]:
    return {key: tensor.detach().double().numpy() for key, tensor in model.named_parameters()}


def by_formula(model: nn.Module, method: str, options: dict) -> dict[str, np.ndarray]:
    """The tensors of the base that an adapter changes, by the method's numpy reference."""
    base = network()
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in adapter_tensors(model):
        path, _, rest = name.partition(":")
        layers.setdefault(path, {})[rest.rpartition(".")[2]] = tensor.detach().double().numpy()
        assert rest.startswith(f"default:{method}")
    found: dict[str, np.ndarray] = {}
    given = {option.name: option.default for option in convpeft.method_info(method).options} | options
    for path, tensors in layers.items():
        layer = base.get_submodule(path)
        if isinstance(layer, type(base.first)):
            found[f"{path}.gamma"] = tensors["weight"]
            continue
        weight = layer.weight.detach().double().numpy()
        bias = None if layer.bias is None else layer.bias.detach().double().numpy()
        turned = isinstance(layer, nn.ConvTranspose2d)
        weight = canonical(weight, 1) if turned else weight
        groups = getattr(layer, "groups", 1)
        weight, bias = reference_of(method).new_tensors(weight, bias, tensors, given | {"groups": groups})
        found[f"{path}.weight"] = canonical(weight, 1) if turned else weight
        if bias is not None:
            found[f"{path}.bias"] = bias
    return found


def assert_sum(combined: Path, adapters: list[dict[str, np.ndarray]], shares: tuple[float, ...]) -> None:
    """The combined adapter, loaded on a fresh base and merged, has the summed tensors."""
    base = parameters(network())
    found = parameters(convpeft.merge(convpeft.load(network(), combined).eval()))
    assert any(key in base for adapter in adapters for key in adapter)
    for key, value in found.items():
        own = base.get(key, np.zeros_like(value))
        expected = own.copy()
        for share, adapter in zip(shares, adapters, strict=True):
            expected += share * (adapter.get(key, own) - own)
        error = np.abs(value - expected).max() / max(np.abs(expected).max(), 1e-3)
        assert error <= TOLERANCE, key


OPTIONS = {
    "lora": [{"rank": 2, "alpha": 3.0}, {"rank": 1, "init": "pissa"}, {"rank": 8, "rslora": True, "alpha": 2.0}],
    "bitfit": [{"create": True}],
    "cp-tucker": [{"rank": 1}],
    "adalora": [{"rank": 2, "target_rank": 1.0, "alpha": 5.0}],
    "mlae": [{"rank": 2, "dropout": 0.0}],
}


@pytest.mark.parametrize(("method", "options"), [(m, o) for m in MAPS for o in OPTIONS.get(m, [{}])], ids=str)
def test_sum_equals_the_references_sum(tmp_path, method, options):
    models = [adapted(method, seed, norm="frozen", **options) for seed in (1, 2)]
    paths = [convpeft.save(model, tmp_path / str(number)) for number, model in enumerate(models)]
    out = convpeft.combine(paths, coefficients=SHARES, out=tmp_path / "sum", model=network())
    assert_sum(out, [by_formula(model, method, options) for model in models], SHARES)


def test_sum_of_different_methods_equals_the_references_sum(tmp_path):
    used = [("lora", {"rank": 2, "include": ["conv"]}), ("dora", {"rank": 1, "include": ["first", "deep"]})]
    used += [("bitfit", {}), ("tucker", {"rank": 1})]
    models = [adapted(method, seed, norm="frozen", **options) for seed, (method, options) in enumerate(used)]
    paths = [convpeft.save(model, tmp_path / str(number)) for number, model in enumerate(models)]
    shares = (0.5, -0.25, 2.0, 1.0)
    out = convpeft.combine(paths, coefficients=shares, out=tmp_path / "sum", model=network())
    plain = [
        by_formula(model, method, {k: v for k, v in options.items() if k == "rank"})
        for model, (method, options) in zip(models, used, strict=True)
    ]
    assert_sum(out, plain, shares)


@pytest.mark.parametrize("method", ["lora", "lora-fa", "mlae", "cp", "tucker", "tt", "adalora"])
def test_low_rank_updates_stay_factors_and_need_no_base(tmp_path, method):
    options = {"rank": 1} | ({"target_rank": 1.0} if method == "adalora" else {})
    paths = [saved(tmp_path, method, seed, include=["deep", "first.conv"], **options) for seed in (1, 2)]
    out = convpeft.combine(paths, coefficients=[1, 1], out=tmp_path / "sum")
    config = json.loads((out / CONFIG).read_text())
    assert config["method"] == "lora"
    assert {part["part"] for part in config["parts"]} == {"lora"}
    ups = {name: tensor.shape[1] for name, tensor in adapter_tensors(convpeft.load(network(), out)) if "up" in name}
    assert set(ups.values()) == {2}  # the ranks add up


def test_sum_of_large_ranks_is_written_whole_where_factors_would_be_larger(tmp_path):
    paths = [saved(tmp_path, "lora", seed, rank=8) for seed in (1, 2)]
    with pytest.raises(convpeft.ModelError, match="this sum is written as whole weights, for which the base is needed"):
        convpeft.combine(paths, out=tmp_path / "sum")
    assert not (tmp_path / "sum").exists()
    out = convpeft.combine(paths, out=tmp_path / "sum", model=network())
    forms = {part["path"]: part["part"] for part in json.loads((out / CONFIG).read_text())["parts"]}
    assert forms["deep"] == "lora"
    assert forms["first.depthwise"] == "full"


def test_heads_of_the_same_classes_are_averaged(tmp_path):
    models = [adapted("tsa", seed, num_classes=3) for seed in (1, 2)]  # it acts on top of its own head too
    paths = [convpeft.save(m, tmp_path / str(n), classes=["a", "b", "c"]) for n, m in enumerate(models)]
    out = convpeft.combine(paths, coefficients=[0.25, 0.75], out=tmp_path / "sum", model=network())
    loaded = convpeft.load(network(), out).eval()
    heads = [convpeft.merged(model.eval()).classifier for model in (*models, loaded)]
    for each in ("weight", "bias"):
        first, second, found = (getattr(head, each) for head in heads)
        assert relative_error(found, 0.25 * first + 0.75 * second) <= TOLERANCE
    assert json.loads((out / CONFIG).read_text())["classes"] == ["a", "b", "c"]


def test_one_adapter_alone_is_scaled(tmp_path):
    model = adapted("lora", 3, rank=2)
    path = convpeft.save(model, tmp_path / "a")
    out = convpeft.combine([path], coefficients=[0.5], out=tmp_path / "half", model=network())
    assert_sum(out, [by_formula(model, "lora", {"rank": 2})], (0.5,))
    whole = convpeft.combine([path], out=tmp_path / "whole", model=network())
    with torch.no_grad():
        assert relative_error(convpeft.load(network(), whole).eval()(IMAGES), model.eval()(IMAGES)) <= 1e-5


def test_float64_adapters_give_a_float64_sum(tmp_path):
    models = [randomise(convpeft.attach(network().double(), "lora", rank=1), seed) for seed in (1, 2)]
    paths = [convpeft.save(model, tmp_path / str(number)) for number, model in enumerate(models)]
    out = convpeft.combine(paths, coefficients=[1, -1], out=tmp_path / "sum", model=network().double())
    found = convpeft.merge(convpeft.load(network().double(), out)).deep.weight
    own = network().double().deep.weight
    first, second = (convpeft.merged(model).deep.weight for model in models)
    assert relative_error(found, own + first - second) <= 1e-14


def test_equal_norm_statistics_are_kept_and_others_refused(tmp_path):
    model = adapted("lora", 1, rank=1, norm="adapt")
    first = convpeft.save(model, tmp_path / "a")
    statistics = {name: tensor.clone() for name, tensor in adapter_tensors(model) if ":norm." in name}
    randomise(model, 2)
    with torch.no_grad():
        for name, tensor in adapter_tensors(model):
            if name in statistics:
                tensor.copy_(statistics[name])
    second = convpeft.save(model, tmp_path / "b")
    out = convpeft.combine([first, second], out=tmp_path / "sum", model=network())
    loaded = dict(adapter_tensors(convpeft.load(network(), out)))
    assert statistics
    assert all(torch.equal(loaded[name], tensor) for name, tensor in statistics.items())
    other = saved(tmp_path, "lora", 3, rank=1, norm="adapt")
    with pytest.raises(
        convpeft.AdapterFileError, match=r"has other norm statistics than .*/a, and a sum of statistics"
    ):
        convpeft.combine([first, other], out=tmp_path / "no")
    with pytest.raises(convpeft.AdapterFileError, match="has other norm statistics than"):
        convpeft.combine([first, saved(tmp_path, "lora", 4, rank=1)], out=tmp_path / "no")


def test_equal_sums_are_equal_bytes(tmp_path):
    paths = [saved(tmp_path, "lora", seed, rank=4) for seed in (1, 2)]
    outs = [convpeft.combine(paths, out=tmp_path / name, model=network()) for name in ("one", "two")]
    for name in (CONFIG, WEIGHTS):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()


def test_sum_can_be_saved_summed_and_banked_again(tmp_path):
    paths = [saved(tmp_path, "lora", seed, rank=2) for seed in (1, 2)]
    out = convpeft.combine(paths, out=tmp_path / "sum", model=network())
    again = convpeft.combine([out, paths[0]], out=tmp_path / "again", model=network())
    bank = convpeft.Bank(network())
    bank.add("sum", again)
    with torch.no_grad():
        assert torch.equal(bank.run(IMAGES, "sum"), convpeft.load(network(), again).eval()(IMAGES))
    convpeft.save(convpeft.load(network(), out), tmp_path / "saved")
    assert (tmp_path / "saved" / WEIGHTS).read_bytes() == (out / WEIGHTS).read_bytes()


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(MAPS)))
def test_branches_are_refused(tmp_path, method):
    paths = [saved(tmp_path, method, seed) for seed in (1, 2)]
    with pytest.raises(convpeft.ModelError, match="is no map of weights, so there is no sum of it"):
        convpeft.combine(paths, out=tmp_path / "sum", model=network())


def test_different_bases_are_refused_and_both_named(tmp_path):
    first = saved(tmp_path, "lora", 1)
    second = convpeft.save(convpeft.attach(network(seed=3), "lora"), tmp_path / "other")
    fingerprints = [json.loads((p / CONFIG).read_text())["base"]["fingerprint"][:16] for p in (first, second)]
    with pytest.raises(convpeft.AdapterFileError) as refusal:
        convpeft.combine([first, second], out=tmp_path / "sum")
    assert f"made for the base {fingerprints[1]}, but {first} for {fingerprints[0]}" in str(refusal.value)
    with pytest.raises(convpeft.AdapterFileError, match="made for the base"):
        convpeft.combine([saved(tmp_path, "dora", 1)], out=tmp_path / "sum", model=network(seed=3))


def test_other_classes_are_refused(tmp_path):
    def save(name: str, classes: list[str] | None, count: int | None = 2) -> Path:
        return convpeft.save(adapted("lora", 1, rank=1, num_classes=count), tmp_path / name, classes=classes)

    first = save("a", ["cat", "dog"])
    for name, classes, count in (("turned", ["dog", "cat"], 2), ("three", ["cat", "dog", "x"], 3), ("old", None, None)):
        with pytest.raises(convpeft.AdapterFileError, match="Heads add up only for the same classes in the same order"):
            convpeft.combine([first, save(name, classes, count)], out=tmp_path / "sum")
    with pytest.raises(convpeft.AdapterFileError, match="tells no class names, so nobody knows"):
        convpeft.combine([save("c", None), save("d", None)], out=tmp_path / "sum")
    with pytest.raises(convpeft.OptionError, match=r"add up to 0\.9, but heads of their own can only be averaged"):
        convpeft.combine([first, first], coefficients=[0.5, 0.4], out=tmp_path / "sum")


def test_adapter_on_top_of_another_is_refused(tmp_path):
    model = convpeft.attach(adapted("lora"), "bitfit", name="second")
    path = convpeft.save(model, tmp_path / "second", name="second")
    with pytest.raises(convpeft.AdapterFileError, match="has no place in a sum"):
        convpeft.combine([path], out=tmp_path / "sum")


def test_other_preprocessing_is_refused(tmp_path):
    model = convpeft.load_model("small-cnn")
    convpeft.attach(model, "lora", rank=1)
    told = model.__dict__["_convpeft_preprocessing"]
    first = convpeft.save(model, tmp_path / "a")
    model.__dict__.pop("_convpeft_preprocessing")
    second = convpeft.save(model, tmp_path / "b")
    assert told is not None
    with pytest.raises(convpeft.AdapterFileError, match="prepares images in another way than"):
        convpeft.combine([first, second], out=tmp_path / "sum")


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ([0.5], "coefficients: expected one for each of 2 adapters, got 1."),
        ([0.5, float("nan")], "coefficients: nan is no finite number."),
        ([1e300, 1e300], "is not finite. Give smaller ones."),
    ],
)
def test_wrong_coefficients_are_refused(tmp_path, coefficients, message):
    paths = [saved(tmp_path, "lora", seed, rank=1, include=["deep"]) for seed in (1, 2)]
    with pytest.raises(convpeft.OptionError, match=message):
        convpeft.combine(paths, coefficients=coefficients, out=tmp_path / "sum")
    assert not (tmp_path / "sum").exists()


def test_no_adapter_is_refused(tmp_path):
    with pytest.raises(convpeft.OptionError, match="expected at least one adapter to combine, got none"):
        convpeft.combine([], out=tmp_path / "sum")


def test_damaged_file_is_refused(tmp_path):
    path = saved(tmp_path, "lora", 1)
    data = bytearray((path / WEIGHTS).read_bytes())
    data[-3] ^= 1
    (path / WEIGHTS).write_bytes(data)
    with pytest.raises(convpeft.AdapterFileError, match="is not the one that was saved"):
        convpeft.combine([path], out=tmp_path / "sum", model=network())
