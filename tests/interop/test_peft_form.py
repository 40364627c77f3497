"""peft's adapters are read and written; outputs are those of the real package."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import convpeft
from contract.networks import randomise, relative_error
from convpeft.injection import adapted_layers
from convpeft.interop import read_peft, write_peft
from convpeft.slots import slots_of
from interop.networks_of_peers import LAYERS, LEAST_EFFECT, assert_equal_outputs, base, images, perturbed, twin


@pytest.fixture(scope="module")
def peft() -> ModuleType:
    import convpeft._torchvision  # noqa: F401

    return pytest.importorskip("peft")


CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraConfig", {"r": 3, "lora_alpha": 5}),
    "rslora": ("LoraConfig", {"r": 3, "lora_alpha": 5, "use_rslora": True}),
    "patterns": (
        "LoraConfig",
        {"r": 3, "lora_alpha": 5, "rank_pattern": {"3": 2, "^7": 4}, "alpha_pattern": {"3": 7, "0": 2}},
    ),
    "dora": ("LoraConfig", {"r": 3, "lora_alpha": 5, "use_dora": True}),
    "wide": ("LoraConfig", {"r": 16, "lora_alpha": 5}),
    "loha": ("LoHaConfig", {"r": 2, "alpha": 5}),
    "loha-tucker": ("LoHaConfig", {"r": 2, "alpha": 5, "use_effective_conv2d": True}),
    "lokr": ("LoKrConfig", {"r": 2, "alpha": 5}),
    "lokr-both": ("LoKrConfig", {"r": 1, "alpha": 50, "decompose_both": True}),
    "lokr-whole": ("LoKrConfig", {"r": 16, "alpha": 90}),
    "lokr-factor": ("LoKrConfig", {"r": 2, "alpha": 5, "decompose_factor": 2}),
    "lokr-tucker": ("LoKrConfig", {"r": 1, "alpha": 50, "use_effective_conv2d": True}),
}


def saved(peft: ModuleType, kind: str, place: Path, plain: nn.Module, **more: Any) -> nn.Module:
    """peft's own adapter on a copy of the base, every tensor perturbed, and its directory."""
    config, options = CONFIGS[kind]
    given = {"target_modules": LAYERS} | options | more
    model = peft.get_peft_model(twin(plain), getattr(peft, config)(**given)).eval()
    own = ("lora_", "hada_", "lokr_", "modules_to_save")
    perturbed(model, lambda name: any(word in name for word in own))
    model.save_pretrained(place)
    return model


def loaded(peft: ModuleType, plain: nn.Module, place: Path) -> nn.Module:
    return peft.PeftModel.from_pretrained(twin(plain), place).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CONFIGS)
def test_adapter_of_peft_is_read(peft: ModuleType, tmp_path: Path, kind: str) -> None:
    plain = base()
    expected = saved(peft, kind, tmp_path / "a", plain)
    ours = read_peft(tmp_path / "a", twin(plain))
    assert_equal_outputs(ours, expected, plain)
    again = convpeft.load(twin(plain), convpeft.save(ours, tmp_path / "ours"))
    assert_equal_outputs(again, expected)


OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"rank": 3, "alpha": 5.0}),
    "clamped": ("lora", {"rank": 64, "alpha": 90.0}),
    "rslora": ("lora", {"rank": 3, "alpha": 5.0, "rslora": True}),
    "pissa": ("lora", {"rank": 2, "init": "pissa", "learned_scale": True}),
    "lora-fa": ("lora-fa", {"rank": 2}),
    "tucker": ("tucker", {"rank": 2}),
    "dora": ("dora", {"rank": 3, "alpha": 5.0}),
    "loha": ("loha", {"rank": 2, "alpha": 5.0, "learned_scale": True}),
    "lokr": ("lokr", {"rank": 2, "alpha": 5.0}),
    "lokr-both": ("lokr", {"rank": 1, "alpha": 5.0, "decompose_both": True, "learned_scale": True}),
    "lokr-whole": ("lokr", {"rank": 16, "alpha": 5.0}),
    "lokr-factor": ("lokr", {"rank": 2, "alpha": 5.0, "factor": 2}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", OURS)
def test_adapter_is_written_for_peft(peft: ModuleType, tmp_path: Path, kind: str) -> None:
    method, options = OURS[kind]
    plain = base()
    ours = randomise(convpeft.attach(twin(plain), method, include=["conv", "7"], **options))
    place = write_peft(ours, tmp_path / "a")
    assert {file.name for file in place.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert_equal_outputs(loaded(peft, plain, place), ours, plain)
    assert_equal_outputs(read_peft(place, twin(plain)), ours)


def head_saved(peft: ModuleType, place: Path, plain: nn.Module) -> nn.Module:
    return saved(peft, "lora", place, plain, modules_to_save=["9"])


def test_modules_to_save_for_the_head_become_a_fresh_head(peft: ModuleType, tmp_path: Path) -> None:
    trained = base()
    trained[9] = nn.Linear(18, 7)  # peft's user has put a head for seven classes on
    expected = head_saved(peft, tmp_path / "a", trained)
    ours = read_peft(tmp_path / "a", base())
    assert_equal_outputs(ours, expected)
    assert_equal_outputs(convpeft.load(base(), convpeft.save(ours, tmp_path / "ours")), expected)


def test_fresh_head_is_written_as_modules_to_save(peft: ModuleType, tmp_path: Path) -> None:
    ours = randomise(convpeft.attach(base(), "lora", rank=2, num_classes=7, also_train=["7"]))
    place = write_peft(ours, tmp_path / "a")
    assert json.loads((place / "adapter_config.json").read_text())["modules_to_save"] == ["7", "9"]
    resized = base()
    resized[9] = nn.Linear(18, 7)
    assert_equal_outputs(loaded(peft, resized, place), ours)
    assert_equal_outputs(read_peft(place, base()), ours)


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_grouped_layers_are_read_from_loha_and_lokr(peft: ModuleType, tmp_path: Path, kind: str) -> None:
    plain = base(grouped=True)
    expected = saved(peft, kind, tmp_path / "a", plain)
    ours = read_peft(tmp_path / "a", twin(plain))
    assert_equal_outputs(ours, expected, plain)
    assert_equal_outputs(loaded(peft, plain, write_peft(ours, tmp_path / "b")), expected)


@pytest.mark.filterwarnings("ignore")
def test_grouped_layer_with_lora_is_refused_in_both_directions(peft: ModuleType, tmp_path: Path) -> None:
    plain = base(grouped=True)
    saved(peft, "lora", tmp_path / "a", plain, r=4)
    with pytest.raises(convpeft.AdapterFileError, match=r"layer '3' .grouped.*on a grouped convolution mixes groups"):
        read_peft(tmp_path / "a", twin(plain))
    ours = convpeft.attach(twin(plain), "lora", rank=2)
    with pytest.raises(convpeft.ModelError, match=r"layer '3' .grouped.*is no change of its weight"):
        write_peft(ours, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def dilated() -> nn.Sequential:
    torch.manual_seed(0)
    first = nn.Conv2d(4, 8, 3, padding=2, dilation=2)
    second = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
    return nn.Sequential(first, second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


LOUDER: dict[str, dict[str, Any]] = {"loha": {"alpha": 500}}  # a product of four small numbers hardly moves the output
WRONG = {"lora": ["0", "1"], "dora": ["0", "1"], "loha": ["1"], "lokr-whole": ["1"]}  # layers, by kind


@pytest.mark.filterwarnings("ignore:.*factors are larger")
@pytest.mark.parametrize("kind", WRONG)
def test_where_peft_computes_wrongly_its_merged_weight_is_taken_with_a_warning(
    peft: ModuleType, tmp_path: Path, kind: str
) -> None:
    """LoRA and DoRA forget dilation and padding mode, LoHa and LoKr the padding mode."""
    plain = dilated()
    theirs = saved(peft, kind, tmp_path / "a", plain, target_modules=["0", "1"], **LOUDER.get(kind, {}))
    named = ", ".join(map(repr, WRONG[kind]))
    with pytest.warns(
        UserWarning, match=rf"{len(WRONG[kind])} layers \({named}\): peft is only right with zero padding"
    ):
        ours = read_peft(tmp_path / "a", twin(plain))
    if kind in ("loha", "lokr-whole"):  # with LoRA the sizes differ
        with torch.no_grad():
            assert relative_error(theirs(images()), ours(images())) > LEAST_EFFECT, "peft would be right"
    assert_equal_outputs(ours, theirs.merge_and_unload(), plain)


@pytest.mark.parametrize("kind", WRONG)
def test_where_peft_computes_wrongly_it_merges_what_was_written(peft: ModuleType, tmp_path: Path, kind: str) -> None:
    plain = dilated()
    method, options = OURS[kind]
    ours = randomise(convpeft.attach(twin(plain), method, include=["0", "1"], **options))
    with pytest.warns(UserWarning, match="peft is only right with zero padding"):
        place = write_peft(ours, tmp_path / "a")
    assert_equal_outputs(loaded(peft, plain, place).merge_and_unload(), ours, plain)


@pytest.mark.parametrize("kind", ["loha", "lokr-whole"])
def test_dilation_is_read_from_loha_and_lokr_as_peft_runs_it(peft: ModuleType, tmp_path: Path, kind: str) -> None:
    plain = dilated()
    expected = saved(peft, kind, tmp_path / "a", plain, target_modules=["0"], **LOUDER.get(kind, {}))
    assert_equal_outputs(read_peft(tmp_path / "a", twin(plain)), expected, plain)


def test_norms_with_statistics_are_warned_of(peft: ModuleType, tmp_path: Path) -> None:
    plain = base(norm=True)
    expected = saved(peft, "lora", tmp_path / "a", plain)
    with pytest.warns(UserWarning, match="peft stores no running statistics"):
        ours = read_peft(tmp_path / "a", twin(plain))
    assert_equal_outputs(ours, expected, plain)


def test_wide_factors_are_taken_whole_with_a_warning(peft: ModuleType, tmp_path: Path) -> None:
    saved(peft, "wide", tmp_path / "a", base())
    with pytest.warns(UserWarning, match="its weight was taken whole"):
        read_peft(tmp_path / "a", base())


OPTIONS_REFUSED = {
    "peft_type": ("OFT", "peft_type='OFT' is not read. Known: LORA"),
    "fan_in_fan_out": (True, "fan_in_fan_out=True has no form in convpeft"),
    "bias": ("all", "bias='all' has no form in convpeft"),
    "init_lora_weights": ("pissa", "init_lora_weights='pissa' may stand on a base that peft has changed"),
    "lora_alpha": ("5", "lora_alpha='5' is not what peft writes"),
    "r": (10**400, "is not what peft writes"),
    "use_rslora": (1, "use_rslora=1 is not what peft writes"),
    "alpha_pattern": ({"(a+)+$": 3}, "is a regular expression, which is not run from a file"),
    "rank_pattern": ({"a": 0.5}, "rank_pattern={'a': 0.5} is not what peft writes"),
}


def sample(place: Path) -> Path:
    return write_peft(convpeft.attach(base(), "lora", rank=2), place)


@pytest.mark.parametrize("key", OPTIONS_REFUSED)
def test_option_without_a_form_is_refused_and_the_model_left_alone(tmp_path: Path, key: str) -> None:
    value, message = OPTIONS_REFUSED[key]
    config = sample(tmp_path / "a") / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: value}))
    model = base()
    with pytest.raises(convpeft.AdapterFileError) as caught:
        read_peft(tmp_path / "a", model)
    assert message in str(caught.value)
    assert list(model.state_dict()) == list(base().state_dict())


def changed(place: Path, **tensors: Any) -> Path:
    file = sample(place) / "adapter_model.safetensors"
    state = load_file(file)
    for key, value in tensors.items():
        full = f"base_model.model.{key.replace('__', '.')}"
        if value is None:
            del state[full]
        else:
            state[full] = value
    save_file(state, file)
    return place


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"0__lora_A__weight": torch.full((2, 4, 3, 3), torch.nan)}, "holds NaN or infinity. Train the adapter again"),
        ({"0__lora_A__weight": torch.ones(2, 4, 3, 3).int()}, "expected plain floats. Save it unquantised"),
        ({"0__lora_A__weight": torch.ones(2, 4, 5, 5)}, "does not fit"),
        ({"0__lora_A__weight": None}, "lacks a tensor, or has one that does not fit"),
        ({"0__lora_embedding_A": torch.ones(2)}, "is none that convpeft knows of peft"),
        ({"8__lora_A__weight": torch.ones(2)}, "no convolution or linear layer '8', which peft's file names"),
        ({"7__bias": torch.ones(3), "7__weight": torch.ones(18, 24)}, "lacks a tensor"),
        (
            {"7__weight": torch.ones(18, 24), "7__lora_A__weight": None, "7__lora_B__weight": None},
            "a bias only on one side",
        ),
        ({"9__weight": torch.ones(4, 7)}, "has another width there. Load the right base"),
    ],
)
def test_tensor_that_does_not_fit_is_refused(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(convpeft.AdapterFileError) as caught:
        read_peft(changed(tmp_path / "a", **tensors), base())
    assert message in str(caught.value)


def test_missing_and_damaged_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(convpeft.AdapterFileError, match="is not a readable description"):
        read_peft(tmp_path, base())
    (sample(tmp_path / "a") / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(convpeft.AdapterFileError, match="cannot be read"):
        read_peft(tmp_path / "a", base())


def test_name_in_use_and_other_active_adapters_are_refused(tmp_path: Path) -> None:
    place, model = sample(tmp_path / "a"), convpeft.attach(base(), "lora", rank=2)
    with pytest.raises(convpeft.OptionError, match=r"Give another name=\.\.\. to read under"):
        read_peft(place, model)
    with pytest.raises(convpeft.ModelError, match="'default' is active too, and a file of another package"):
        read_peft(place, model, name="other")


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ("bitfit", {}, "layer '0' .*: method 'bitfit' has no form in a file of peft"),
        ("lora+dora", {}, "a file of peft holds one of lora, dora, loha, lokr for all layers"),
        ("full", {"norm": "frozen"}, "no layer has factors; peft needs one at least"),
        ("lora", {"norm": "adapt"}, "layer '1': its own running statistics"),
    ],
)
def test_method_without_a_form_in_peft_is_refused(tmp_path: Path, method: str, more: Any, message: str) -> None:
    if method == "lora+dora":
        more = {"lora": {"include": ["0"]}, "dora": {"include": ["3"]}}
    model = convpeft.attach(base(norm=True), method, **more)
    with pytest.raises(convpeft.ModelError, match=message):
        write_peft(model, tmp_path / "a")


def test_other_layers_without_a_form_in_peft_are_refused(tmp_path: Path) -> None:
    turned = nn.Sequential(nn.ConvTranspose2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 2, bias=False))
    with pytest.raises(convpeft.ModelError, match="peft has no adapters for transposed convolutions"):
        write_peft(convpeft.attach(twin(turned), "lora", rank=1), tmp_path / "a")
    deep = nn.Sequential(nn.Conv3d(4, 8, 3), nn.Flatten(), nn.Linear(8, 2, bias=False))
    with pytest.raises(convpeft.ModelError, match="peft has no loha for 3-d convolutions"):
        write_peft(convpeft.attach(twin(deep), "loha", rank=1), tmp_path / "a")
    with pytest.raises(convpeft.ModelError, match="has no bias, and its new head has one"):
        write_peft(convpeft.attach(twin(deep), "lora", rank=1, num_classes=3), tmp_path / "a")
    zeros = twin(deep)
    nn.init.zeros_(zeros[0].weight)
    with pytest.raises(convpeft.ModelError, match="a filter of zeros has no direction"):
        write_peft(convpeft.attach(zeros, "dora", rank=1), tmp_path / "a")


def test_nothing_but_an_adapter_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("mine")
    with pytest.raises(convpeft.AdapterFileError, match="exists and is no adapter of peft, so it is not replaced"):
        sample(tmp_path / "a")
    sample(tmp_path / "b")
    sample(tmp_path / "b")


def test_value_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    model = randomise(convpeft.attach(base(), "lora", rank=2))
    next(p for p in model.parameters() if p.requires_grad).data.fill_(torch.inf)
    with pytest.raises(convpeft.AdapterFileError, match="holds NaN or infinity and is not saved"):
        write_peft(model, tmp_path / "a")


def test_another_factor_on_one_layer_is_refused(tmp_path: Path) -> None:
    model = base()
    convpeft.attach(model, "lokr", rank=2, factor=2, include=["conv"])
    slots_of(model[3]).parts("default").__next__()[1].settled = {"factor": 4}
    with pytest.raises(convpeft.ModelError, match="factor=4 is not that of the other layers"):
        write_peft(model, tmp_path / "a")


def test_empty_file_is_refused(tmp_path: Path) -> None:
    save_file({}, sample(tmp_path / "a") / "adapter_model.safetensors")
    with pytest.raises(convpeft.AdapterFileError, match="holds no layer's adapter"):
        read_peft(tmp_path / "a", base())


def test_example_of_the_documentation_moves_an_adapter(peft: ModuleType, tmp_path: Path) -> None:
    """The two calls of docs/migration.md, on an adapter as its first example makes it."""
    text = (Path(__file__).parents[2] / "docs" / "migration.md").read_text(encoding="utf-8")
    code = text.split("```python")[3].split("```")[0].replace('"for-peft"', "to").replace('"peft-adapter"', "given")
    given, to, plain = tmp_path / "given", tmp_path / "to", base()
    expected = saved(peft, "lora", given, plain, modules_to_save=["9"])
    exec(code, {"base": twin(plain), "given": given, "to": to})
    assert_equal_outputs(loaded(peft, plain, to), expected)


def test_example_of_the_documentation_attaches_the_same_layers(peft: ModuleType) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            block = nn.ModuleDict({"conv1": nn.Conv2d(4, 8, 3), "conv2": nn.Conv2d(8, 8, 3)})
            self.layer1, self.fc = nn.ModuleList([block]), nn.Linear(8, 10)

    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["conv1", "conv2"], modules_to_save=["fc"])
    theirs = peft.get_peft_model(Net(), config)
    found = {name.removesuffix(".lora_A")[17:] for name, _ in theirs.named_modules() if name.endswith(".lora_A")}
    ours = convpeft.attach(Net(), "lora", rank=8, alpha=16.0, include=["*conv1", "*conv2"], num_classes=10)
    adapted = {path for path, layer in adapted_layers(ours) if any(slots_of(layer).parts("default"))}
    assert adapted - {"fc"} == found
