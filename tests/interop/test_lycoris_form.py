"""LyCORIS's files are read and written; outputs are those of the real package."""

import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import convpeft
from contract.networks import randomise, relative_error
from convpeft.interop import read_lycoris, write_lycoris
from interop.networks_of_peers import LEAST_EFFECT, assert_equal_outputs, base, images, perturbed, twin

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
    with torch.no_grad():
        network, _ = lycoris.create_lycoris_from_weights(1.0, str(file), theirs)
    network.apply_to()
    assert_equal_outputs(theirs.eval(), ours, plain)
    assert_equal_outputs(read_lycoris(file, twin(plain)), ours)


def sample(place: Path) -> Path:
    return write_lycoris(convpeft.attach(base(), "lora", rank=2, include=["conv"]), place / "x.safetensors")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lycoris_8.lora_up.weight": torch.ones(2)}, "belongs to no convolution or linear layer of this model"),
        ({"lycoris_0.lora_down.weight": torch.full((2, 4, 3, 3), torch.nan)}, "holds NaN or infinity"),
        ({"lycoris_0.oft_blocks": torch.ones(2)}, "are no LoCon, DoRA .wd_on_out., LoHa, LoKr or full that fits"),
        ({"lycoris_0.dora_scale": torch.ones(1, 4, 1, 1)}, "dora_scale is that of wd_on_out=False"),
        ({"lycoris_0.lora_down.weight": torch.ones(2, 4, 5, 5)}, "does not fit"),
    ],
)
def test_tensor_that_does_not_fit_is_refused(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    file = sample(tmp_path)
    save_file(load_file(file) | tensors, file)
    with pytest.raises(convpeft.AdapterFileError, match=message):
        read_lycoris(file, base())


def test_dora_scale_beside_loha_is_refused(tmp_path: Path) -> None:
    file = write_lycoris(convpeft.attach(base(), "loha", rank=2, include=["conv"]), tmp_path / "x.safetensors")
    save_file(load_file(file) | {"lycoris_0.dora_scale": torch.ones(16, 1, 1, 1)}, file)
    with pytest.raises(convpeft.AdapterFileError, match="dora_scale beside LoHa or LoKr"):
        read_lycoris(file, base())


def test_what_has_no_form_in_lycoris_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    with pytest.raises(convpeft.ModelError, match="a new head has no form in a file of LyCORIS"):
        write_lycoris(convpeft.attach(base(), "lora", num_classes=3), file)
    turned = nn.Sequential(nn.ConvTranspose2d(4, 8, 3))
    with pytest.raises(convpeft.ModelError, match="a transposed convolution has no form in a file of LyCORIS"):
        write_lycoris(convpeft.attach(turned, "lora", rank=1, head="auto"), file)
    with pytest.raises(convpeft.AdapterFileError, match="expected a name that ends in"):
        write_lycoris(convpeft.attach(base(), "lora"), tmp_path / "x.pt")


def test_two_layers_of_one_name_are_refused(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a_b = nn.Conv2d(2, 4, 3)
            self.a = nn.ModuleDict({"b": nn.Conv2d(2, 4, 3)})

    with pytest.raises(convpeft.ModelError, match="are both 'lycoris_a_b' in a file of LyCORIS"):
        write_lycoris(convpeft.attach(Pair(), "lora", rank=1), tmp_path / "x.safetensors")


def test_padding_mode_is_warned_of(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"))
    with pytest.warns(UserWarning, match="LyCORIS is only right with zero padding"):
        write_lycoris(convpeft.attach(model, "lora", rank=1), tmp_path / "x.safetensors")


LOUDER = {"linear_alpha": 500, "conv_alpha": 500}  # a product of four small numbers hardly moves the output
GEOMETRIES = {kind: ALGORITHMS[kind] for kind in ("locon", "dora", "lokr-whole", "full")}
GEOMETRIES["loha"] = ALGORITHMS["loha"] | LOUDER


class Padded(nn.Module):
    """A dilated layer, and one with circular padding, its own or done before it, which is the same function."""

    def __init__(self, *, outside: bool) -> None:
        super().__init__()
        self.dilated = nn.Conv2d(4, 8, 3, padding=2, dilation=2)
        self.circular = nn.Conv2d(8, 8, 3, padding=0 if outside else 1, padding_mode="zeros" if outside else "circular")
        self.linear, self.outside = nn.Linear(8, 4), outside

    def forward(self, x: Tensor) -> Tensor:
        x = self.dilated(x)
        x = self.circular(nn.functional.pad(x, (1, 1, 1, 1), mode="circular") if self.outside else x)
        return self.linear(x.mean((2, 3)))


def padded(*, outside: bool) -> nn.Module:
    torch.manual_seed(0)
    return Padded(outside=outside).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", GEOMETRIES)
def test_where_lycoris_pads_with_zeros_its_weights_are_taken(lycoris: ModuleType, tmp_path: Path, kind: str) -> None:
    """Where the padding is done before the layer, LyCORIS is right; dilation is no matter."""
    expected, network = around(lycoris, padded(outside=True), **GEOMETRIES[kind])
    network.save_weights(str(tmp_path / "x.safetensors"), None, {})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        same = read_lycoris(tmp_path / "x.safetensors", padded(outside=True))
    assert not [each for each in told if "zero padding" in str(each.message)]
    assert_equal_outputs(same, expected, padded(outside=True))
    with pytest.warns(UserWarning, match=r"1 layers \('circular'\): LyCORIS is only right with zero padding"):
        ours = read_lycoris(tmp_path / "x.safetensors", padded(outside=False))
    assert_equal_outputs(ours, expected, padded(outside=False))
    theirs = padded(outside=False)
    with torch.no_grad():
        lycoris.create_lycoris_from_weights(1.0, str(tmp_path / "x.safetensors"), theirs)[0].apply_to()
        assert relative_error(theirs(images()), expected(images())) > LEAST_EFFECT, "LyCORIS would be right"
