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
from contract.networks import randomise
from convpeft.interop import read_peft, write_peft
from interop.networks_of_peers import LAYERS, assert_equal_outputs, base, images, perturbed, twin


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
    "clamped": ("lora", {"rank": 64, "alpha": 5.0}),
    "rslora": ("lora", {"rank": 3, "alpha": 5.0, "rslora": True}),
    "pissa": ("lora", {"rank": 2, "init": "pissa", "learned_scale": True}),
    "lora-fa": ("lora-fa", {"rank": 2}),
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
