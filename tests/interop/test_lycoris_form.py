"""LyCORIS's files are read and written; outputs are those of the real package."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

import convpeft
from contract.networks import randomise
from convpeft.interop import read_lycoris, write_lycoris
from interop.networks_of_peers import assert_equal_outputs, base, perturbed, twin

ALGORITHMS: dict[str, dict[str, Any]] = {
    "locon": {"algo": "locon", "linear_dim": 3, "linear_alpha": 5},
    "tucker": {"algo": "locon", "linear_dim": 3, "linear_alpha": 5, "use_tucker": True},
    "rslora": {"algo": "locon", "linear_dim": 3, "linear_alpha": 5, "rs_lora": True},
    "scalar": {"algo": "locon", "linear_dim": 3, "linear_alpha": 5, "use_scalar": True},
    "dora": {"algo": "locon", "linear_dim": 3, "linear_alpha": 5, "dora_wd": True, "wd_on_output": True},
    "loha": {"algo": "loha", "linear_dim": 2, "linear_alpha": 5},
    "loha-tucker": {"algo": "loha", "linear_dim": 2, "linear_alpha": 5, "use_tucker": True},
    "lokr": {"algo": "lokr", "linear_dim": 2, "linear_alpha": 9},
    "lokr-both": {"algo": "lokr", "linear_dim": 1, "linear_alpha": 9, "decompose_both": True},
    "lokr-whole": {"algo": "lokr", "linear_dim": 2, "linear_alpha": 9, "full_matrix": True},
    "lokr-factor": {"algo": "lokr", "linear_dim": 2, "linear_alpha": 9, "factor": 2},
    "full": {"algo": "full"},
}


@pytest.fixture(scope="module")
def lycoris() -> ModuleType:
    import convpeft._torchvision  # noqa: F401

    return pytest.importorskip("lycoris")


def around(lycoris: ModuleType, plain: nn.Module, **options: Any) -> tuple[nn.Module, nn.Module]:
    """A copy of the base with LyCORIS on it, and the network of its modules, every tensor perturbed."""
    model = twin(plain)
    dim, alpha = options.get("linear_dim", 4), options.get("linear_alpha", 1)
    lycoris.LycorisNetwork.apply_preset({"target_module": ["Conv2d", "Linear"], "target_name": []})
    network = lycoris.create_lycoris(model, 1.0, **{"conv_dim": dim, "conv_alpha": alpha} | options)
    network.apply_to()
    return model.eval(), perturbed(network.eval(), lambda name: True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("kind", ALGORITHMS)
def test_file_of_lycoris_is_read(lycoris: ModuleType, tmp_path: Path, kind: str, grouped: bool) -> None:
    plain = base(grouped=grouped)
    expected, network = around(lycoris, plain, **ALGORITHMS[kind])
    network.save_weights(str(tmp_path / "x.safetensors"), None, {})
    ours = read_lycoris(tmp_path / "x.safetensors", twin(plain))
    assert_equal_outputs(ours, expected, plain)
    again = convpeft.load(twin(plain), convpeft.save(ours, tmp_path / "ours"))
    assert_equal_outputs(again, ours)


OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"rank": 3, "alpha": 5.0}),
    "pissa": ("lora", {"rank": 2, "init": "pissa", "learned_scale": True}),
    "dora": ("dora", {"rank": 3, "alpha": 5.0}),
    "loha": ("loha", {"rank": 2, "alpha": 5.0, "learned_scale": True}),
    "lokr": ("lokr", {"rank": 2, "alpha": 5.0}),
    "lokr-both": ("lokr", {"rank": 1, "alpha": 5.0, "decompose_both": True, "learned_scale": True}),
    "lokr-whole": ("lokr", {"rank": 16, "alpha": 5.0}),
    "lokr-factor": ("lokr", {"rank": 2, "alpha": 5.0, "factor": 2}),
    "full": ("full", {}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", OURS)
def test_adapter_is_written_for_lycoris(lycoris: ModuleType, tmp_path: Path, kind: str) -> None:
    method, options = OURS[kind]
    plain = base(grouped=kind != "full")
    more = {"norm": "frozen"} if kind == "full" else {}
    ours = randomise(convpeft.attach(twin(plain), method, include=["conv", "linear"], **more, **options))
    file = write_lycoris(ours, tmp_path / "x.safetensors")
    theirs = twin(plain)
    with __import__("torch").no_grad():
        network, _ = lycoris.create_lycoris_from_weights(1.0, str(file), theirs)
    network.apply_to()
    assert_equal_outputs(theirs.eval(), ours, plain)
    assert_equal_outputs(read_lycoris(file, twin(plain)), ours)
