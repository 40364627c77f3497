"""LyCORIS's files: LoCon, DoRA, LoHa, LoKr and full, each layer with an alpha of its own, in one .safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from convpeft.errors import AdapterFileError, ModelError, one_line
from convpeft.interop.building import attach_updates, sites_for, warn_layers
from convpeft.interop.files import read_tensors
from convpeft.interop.lycoris_names import (
    hadamard,
    kronecker,
    multiplied_out,
    opened,
    renamed_hadamard,
    renamed_kronecker,
)
from convpeft.interop.updates import Update, filter_lengths, own_weight, updates_of
from convpeft.sites import Site
from convpeft.slots import HEAD
from convpeft.writing import whole_file

Model = TypeVar("Model", bound=nn.Module)

_PADDED = "LyCORIS is only right with zero padding; what its weights say of the layer is taken"


def read_lycoris(path: str | Path, model: Model, *, name: str = "default", prefix: str = "lycoris") -> Model:
    """Put an adapter of LyCORIS (LoCon, DoRA, LoHa, LoKr, full) on the base it was made for, in place.

    Args:
        path: The .safetensors file.
        model: The base.
        name: What to call the adapter.
        prefix: What the names of layers begin with in the file.

    Returns:
        The same model, the adapter active on it.

    Raises:
        AdapterFileError: If the file is missing, damaged, made for another base, or uses what convpeft has no form for.
        OptionError: If the name is in use.
        ModelError: If another adapter is active, or two layers have one name in such a file.
    """
    source = Path(path)
    sites = sites_for(model, name)
    by_name = _names(sites, prefix)
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in read_tensors(source).items():
        layer, _, tensor = key.partition(".")
        if layer not in by_name:
            raise AdapterFileError(
                f"{one_line(source)}: tensor {key!r} belongs to no convolution or linear layer of this model. "
                f"Load the right base; names begin with prefix={prefix!r}."
            )
        layers.setdefault(layer, {})[tensor] = value
    updates: list[Update] = []
    for layer, tensors in layers.items():
        site = by_name[layer]
        try:
            updates.append(_read_layer(model, site, tensors))
        except (KeyError, ValueError, IndexError, RuntimeError, ArithmeticError) as error:
            raise AdapterFileError(
                f"{one_line(source)}: {site.describe()}: its tensors {sorted(tensors)} are no LoCon, DoRA (wd_on_out), "
                f"LoHa, LoKr or full that fits ({one_line(error)}). Get the file again."
            ) from None
    warn_layers([update.path for update in updates if update.site.padding_mode != "zeros"], _PADDED)
    return attach_updates(model, name, updates, one_line(source))


def write_lycoris(model: nn.Module, path: str | Path, *, name: str = "default", prefix: str = "lycoris") -> Path:
    """Write an adapter as a file that `lycoris.create_lycoris_from_weights` loads.

    Args:
        model: A model with adapters, this one active alone.
        path: File to write, its name ending in .safetensors.
        name: Which adapter.
        prefix: What the names of layers begin with in the file.

    Returns:
        The file.

    Raises:
        ModelError: If a layer's adapter has no form in LyCORIS, another adapter is active, or nothing is attached.
        OptionError: If the name is not attached.
        AdapterFileError: If a tensor is not finite, or the file cannot be written.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise AdapterFileError(f"{one_line(target)}: expected a name that ends in .safetensors. Choose another.")
    updates = updates_of(model, name, "LyCORIS")
    by_path = {site.path: key for key, site in _names({u.path: u.site for u in updates}, prefix).items()}
    tensors: dict[str, Tensor] = {}
    for update in updates:
        for key, value in _written_layer(model, update).items():
            if not bool(torch.isfinite(value).all()):
                raise AdapterFileError(
                    f"layer {update.path!r}: {key!r} holds NaN or infinity and is not saved. Lower the learning rate."
                )
            tensors[f"{by_path[update.path]}.{key}"] = value.to("cpu").contiguous().clone()
    warn_layers([update.path for update in updates if update.site.padding_mode != "zeros"], _PADDED)
    try:
        with whole_file(target) as work:
            save_file(tensors, work, metadata={"format": "pt"})
    except (OSError, ValueError) as error:
        raise AdapterFileError(
            f"{one_line(target)}: cannot be written ({one_line(error)}). Free space or choose another path."
        ) from None
    return target


def _names(sites: Mapping[str, Site], prefix: str) -> dict[str, Site]:
    """Layers by LyCORIS's names, in which dots are underscores."""
    named: dict[str, Site] = {}
    for path, site in sites.items():
        key = f"{prefix}_{path}".replace(".", "_")
        if key in named:
            raise ModelError(
                f"layers {named[key].path!r} and {path!r} are both {key!r} in a file of LyCORIS. Rename one of them."
            )
        named[key] = site
    return named


def _read_layer(model: nn.Module, site: Site, tensors: Mapping[str, Tensor]) -> Update:
    """One layer of LyCORIS as an update."""
    left = dict(tensors)
    if site.transposed:
        raise ValueError("LyCORIS has none for transposed convolutions")
    if "diff" in left:
        weight = own_weight(model, site).cpu() + left.pop("diff").reshape(site.shape)
        bias = cast(Tensor | None, model.get_submodule(site.path)._parameters.get("bias"))
        moved = left.pop("diff_b", None)
        if left or (moved is not None and bias is None):
            raise ValueError("a bias or tensor that the layer has no place for")
        whole = {"weight": weight}
        if bias is not None:
            whole["bias"] = bias.detach().cpu() + (0 if moved is None else moved)
        return Update(site, "full", whole)
    alpha, magnitude = float(left.pop("alpha")), left.pop("dora_scale", None)
    if "lora_up.weight" in left:
        up, down = left.pop("lora_up.weight").flatten(1), left.pop("lora_down.weight")
        rank, core = down.shape[0], left.pop("lora_mid.weight", None)
        if core is not None:
            _, down = opened(core, up.T, down.flatten(1), site)
        if left:
            raise KeyError(f"unknown tensor {min(left)}")
        found = {"up": up, "down": down.flatten(1)}
        if magnitude is None:
            return Update(site, "lora", found, _scale(alpha, rank))
        if magnitude.numel() != site.out_channels or magnitude.shape[0] != site.out_channels:
            raise ValueError("dora_scale is that of wd_on_out=False, lengths of inputs, another method")
        found["gain"] = magnitude.flatten() / filter_lengths(model, site, "LyCORIS").cpu()
        return Update(site, "dora", found, _scale(alpha, rank))
    if magnitude is not None:
        raise ValueError("dora_scale beside LoHa or LoKr, which convpeft has no method for")
    if any(key.startswith("hada_") for key in left):
        found, rank = hadamard(left, site)
        return Update(site, "loha", found, _scale(alpha, rank))
    found, width = kronecker(left, site)
    return Update(site, "lokr", found, 1.0 if width is None else _scale(alpha, width))


def _scale(alpha: float, rank: int) -> float:
    """LyCORIS takes an alpha of zero for the rank."""
    return alpha / rank if alpha else 1.0


def _written_layer(model: nn.Module, update: Update) -> dict[str, Tensor]:
    """LyCORIS's tensors of one layer."""
    site, tensors = update.site, update.tensors
    if site.transposed or update.method in (HEAD, "lora-c"):
        what = {HEAD: "a new head", "lora-c": "method 'lora-c'"}.get(update.method, "a transposed convolution")
        raise ModelError(f"{site.describe()}: {what} has no form in a file of LyCORIS. Use convpeft.save.")
    if update.method == "full":
        bias = cast(Tensor | None, model.get_submodule(site.path)._parameters.get("bias"))
        found = {"diff": tensors["weight"] - own_weight(model, site)}
        return found if bias is None else found | {"diff_b": tensors["bias"] - bias.detach()}
    ones = [1] * len(site.kernel)
    if update.method == "loha":
        rank = tensors["down_first"].shape[0]
        found = renamed_hadamard(tensors)
    elif update.method == "lokr":
        whole = multiplied_out(tensors)  # its loader guesses the split wrong from some low-rank factors
        found = renamed_kronecker(whole | {"second": update.scale * whole["second"]}, site)
        return found | {"alpha": torch.tensor(1.0)}
    else:
        rank = tensors["down"].shape[0]
        found = {
            "lora_up.weight": tensors["up"].reshape(*tensors["up"].shape, *ones),
            "lora_down.weight": tensors["down"].reshape(rank, *site.shape[1:]),
        }
        if update.method == "dora":
            length = tensors["gain"] * filter_lengths(model, site, "LyCORIS")
            found["dora_scale"] = length.reshape(-1, *[1] * (len(site.shape) - 1))
    return found | {"alpha": torch.tensor(update.scale * rank)}
