"""loralib's state dicts: `lora_A` and `lora_B` of its Linear and its convolutions; the file does not hold alpha."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from convpeft.adapters import check_positive
from convpeft.errors import AdapterFileError, ModelError, one_line
from convpeft.interop.building import attach_updates, sites_for
from convpeft.interop.updates import Update, updates_of
from convpeft.models.weights import read_weights
from convpeft.sites import Site
from convpeft.writing import whole_file

Model = TypeVar("Model", bound=nn.Module)


def read_loralib(path: str | Path, model: Model, *, alpha: float = 1.0, name: str = "default") -> Model:
    """Put an adapter of loralib on the base it was made for, in place.

    Linear layers get `lora`, convolutions `lora-c` in loralib's layout, which is exact on every geometry.

    Args:
        path: What `torch.save(loralib.lora_state_dict(model), path)` wrote, or the same as .safetensors.
        model: The base, with ordinary layers where loralib's were.
        alpha: The lora_alpha that it was trained with, which the file does not tell. Default: loralib's, 1.
        name: What to call the adapter.

    Returns:
        The same model, the adapter active on it.

    Raises:
        OptionError: If alpha is out of range or the name is in use.
        ModelError: If the file cannot be read, or another adapter is active.
        AdapterFileError: If the file was made for another base, or holds more than lora_A and lora_B.
    """
    check_positive("loralib", alpha=alpha)
    source = one_line(path)
    sites = sites_for(model, name)
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in read_weights(path).items():
        layer, _, tensor = key.rpartition(".")
        if tensor not in ("lora_A", "lora_B"):
            raise AdapterFileError(
                f"{source}: tensor {key!r} is neither lora_A nor lora_B. "
                "Save loralib.lora_state_dict(model, bias='none') alone."
            )
        layers.setdefault(layer, {})[tensor] = value.to(torch.promote_types(value.dtype, torch.float32))
    updates: list[Update] = []
    for layer, tensors in layers.items():
        site = sites.get(layer)
        if site is None or len(tensors) < 2 or not _has_form(site):
            raise AdapterFileError(
                f"{source}: layer {layer!r} of the model is no linear layer or convolution with a square 2-d kernel "
                "that lora_A and lora_B belong to. Load the right base."
            )
        updates.append(_read_layer(site, tensors["lora_A"], tensors["lora_B"], alpha, source))
    return attach_updates(model, name, updates, source)


def write_loralib(model: nn.Module, path: str | Path, *, alpha: float = 1.0, name: str = "default") -> Path:
    """Write an adapter as a state dict for a network with loralib's layers, loaded with `strict=False`.

    The file does not hold the rank and alpha: build each layer with `r` as the file's shapes say (for a convolution
    rows of lora_A through the kernel's side) and with the `alpha` given here.

    Args:
        model: A model with adapters, this one active alone.
        path: File to write, its name ending in .pt or .pth.
        alpha: The lora_alpha of loralib's layers. Default: loralib's, 1.
        name: Which adapter.

    Returns:
        The file.

    Raises:
        OptionError: If alpha is out of range or the name is not attached.
        ModelError: If a layer's adapter has no form in loralib, another adapter is active, or nothing is attached.
        AdapterFileError: If a tensor is not finite, or the file cannot be written.
    """
    check_positive("loralib", alpha=alpha)
    state: dict[str, Tensor] = {}
    for update in updates_of(model, name, "loralib"):
        lora_a, lora_b, rank = _written_layer(update)
        found = {"lora_A": lora_a, "lora_B": lora_b * (update.scale * rank / alpha)}
        for key, value in found.items():
            if not bool(torch.isfinite(value).all()):
                raise AdapterFileError(
                    f"layer {update.path!r}: {key!r} holds NaN or infinity and is not saved. Lower the learning rate."
                )
            state[f"{update.path}.{key}"] = value.to("cpu").contiguous().clone()
    target = Path(path)
    try:
        with whole_file(target) as work:
            torch.save(state, work)
    except (OSError, ValueError, RuntimeError) as error:
        raise AdapterFileError(
            f"{one_line(target)}: cannot be written ({one_line(error)}). Free space or choose another path."
        ) from None
    return target


def _has_form(site: Site) -> bool:
    """Whether loralib has a layer like this: linear, or a square kernel in two dimensions."""
    return site.kind == "linear" or (len(site.kernel) == 2 and len(set(site.kernel)) == 1 and not site.transposed)


def _read_layer(site: Site, lora_a: Tensor, lora_b: Tensor, alpha: float, source: str) -> Update:
    """One layer of loralib as an update."""
    side = site.kernel[0] if site.kernel else 1
    sizes = (site.out_channels // site.groups * side, site.shape[1] * site.groups * side)
    fits = lora_a.ndim == lora_b.ndim == 2 and (lora_b.shape[0], lora_a.shape[1]) == sizes
    if not fits or lora_a.shape[0] != lora_b.shape[1] or lora_a.shape[0] % side or not len(lora_a):
        raise AdapterFileError(
            f"{source}: {site.describe()}: lora_A {tuple(lora_a.shape)} and lora_B {tuple(lora_b.shape)} do not make "
            "its weight. Load the right base."
        )
    tensors, scale = {"up": lora_b, "down": lora_a}, alpha / (len(lora_a) // side)
    if site.kind == "linear" or (side == 1 and site.groups == 1):
        return Update(site, "lora", tensors, scale)
    return Update(site, "lora-c", tensors, scale, {"layout": "loralib", "setting": "rk"})


def _written_layer(update: Update) -> tuple[Tensor, Tensor, int]:
    """lora_A, lora_B and the rank of one layer; a LoRA's matrix is one of loralib's, spread over the kernel's side."""
    site, tensors = update.site, update.tensors
    if update.method not in ("lora", "lora-c") or not _has_form(site):
        raise ModelError(
            f"{site.describe()}: method {update.method!r} has no form in loralib, which knows LoRA on linear layers "
            "and on square 2-d kernels. Use convpeft.save."
        )
    up, down = tensors["up"], tensors["down"]
    side = site.kernel[0] if site.kernel else 1
    if update.method == "lora-c":
        if len(down) % side:
            raise ModelError(
                f"{site.describe()}: a width of {len(down)} is no rank in loralib, where it is a multiple of {side}. "
                "Use convpeft.save."
            )
        return down, up, len(down) // side
    if site.groups > 1:
        raise ModelError(
            f"{site.describe()}: lora on a grouped convolution has no form in loralib, which mixes groups. Use method "
            "'lora-c' with layout='loralib'."
        )
    rank = len(down)
    return down.reshape(rank * side, -1), torch.kron(up, torch.eye(side).to(up)), rank
