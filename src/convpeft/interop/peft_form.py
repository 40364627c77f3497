"""peft's adapters: a directory with adapter_config.json, adapter_model.safetensors and a README.md."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from convpeft.errors import AdapterFileError, ModelError, one_line
from convpeft.interop.building import attach_updates, sites_for, warn_layers
from convpeft.interop.files import read_options, read_tensors
from convpeft.interop.lycoris_names import hadamard, kronecker, renamed_hadamard, renamed_kronecker
from convpeft.interop.peft_options import CONFIG, WEIGHTS, PeftOptions, check_options, kronecker_plan, pattern_of
from convpeft.interop.updates import Update, filter_lengths, updates_of
from convpeft.norms import norms_with_statistics
from convpeft.sites import Site, find_head
from convpeft.slots import HEAD
from convpeft.writing import whole_directory

Model = TypeVar("Model", bound=nn.Module)

_PREFIX = "base_model.model."
_ENDS = re.compile(
    r"\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector(?:\.weight)?"
    r"|hada_[wt][12](?:_[ab])?|lokr_[wt][12](?:_[ab])?|weight|bias)$"
)
_README = """# Adapter

Written by convpeft in the form of peft. Load it with `peft.PeftModel.from_pretrained(base, path)`, on the base in
evaluation mode{head}.
"""


def read_peft(path: str | Path, model: Model, *, name: str = "default") -> Model:
    """Put an adapter of peft (LoRA, DoRA, LoHa, LoKr) on the base it was made for, in place.

    `modules_to_save` for the classifier becomes a fresh head, other layers in it are taken whole.

    Args:
        path: The directory that `save_pretrained` wrote.
        model: The base, without peft's wrappers.
        name: What to call the adapter.

    Returns:
        The same model, the adapter active on it.

    Raises:
        AdapterFileError: If the file is missing, damaged, made for another base, or uses what convpeft has no form for.
        OptionError: If the name is in use.
        ModelError: If another adapter is active.
    """
    directory = Path(path)
    options = check_options(read_options(directory / CONFIG), directory)
    sites = sites_for(model, name)
    head = find_head(model)
    updates = [
        _read_layer(directory, model, sites, layer, tensors, options, head=head)
        for layer, tensors in _by_layer(read_tensors(directory / WEIGHTS), directory).items()
    ]
    _warn_geometry([update.site for update in updates if not update.whole], options.kind)
    if norms_with_statistics(model):
        warn_layers(
            [path for path, _ in norms_with_statistics(model)],
            "peft stores no running statistics of norms; if they moved while it trained, what it learned is not whole",
        )
    return attach_updates(model, name, updates, one_line(directory))


def write_peft(model: nn.Module, path: str | Path, *, name: str = "default") -> Path:
    """Write an adapter as a directory that `peft.PeftModel.from_pretrained` loads.

    Args:
        model: A model with adapters, this one active alone.
        path: Directory to write; an adapter of peft that is there is replaced.
        name: Which adapter.

    Returns:
        The directory.

    Raises:
        ModelError: If a layer's adapter has no form in peft, another adapter is active, or nothing is attached.
        OptionError: If the name is not attached.
        AdapterFileError: If the directory holds something else or cannot be written.
    """
    updates = updates_of(model, name, "peft")
    tensors: dict[str, Tensor] = {}
    config = _config_of(updates)
    for update in updates:
        for key, value in _written_layer(model, update, config).items():
            if not bool(torch.isfinite(value).all()):
                raise AdapterFileError(
                    f"layer {update.path!r}: {key!r} holds NaN or infinity and is not saved. Lower the learning rate."
                )
            tensors[f"{_PREFIX}{update.path}.{key}"] = value.to("cpu").contiguous().clone()
    _warn_geometry([update.site for update in updates if not update.whole], config["peft_type"])
    head = "".join(f", with {len(u.tensors['weight'])} classes in `{u.path}`" for u in updates if u.method == HEAD)
    target = Path(path)
    names = {CONFIG, WEIGHTS, "README.md"}
    try:
        if target.exists() and (not target.is_dir() or any(file.name not in names for file in target.iterdir())):
            raise AdapterFileError(
                f"{one_line(target)}: exists and is no adapter of peft, so it is not replaced. Choose another path."
            )
        with whole_directory(target) as work:
            save_file(tensors, work / WEIGHTS, metadata={"format": "pt"})
            (work / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            (work / "README.md").write_text(_README.format(head=head), encoding="utf-8")
    except (OSError, ValueError) as error:
        raise AdapterFileError(
            f"{one_line(target)}: cannot be written ({one_line(error)}). Free space or choose another path."
        ) from None
    return target


def _by_layer(tensors: Mapping[str, Tensor], directory: Path) -> dict[str, dict[str, Tensor]]:
    """Tensors by the path of their layer, under what is left of their names."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        found = _ENDS.search(key)
        if found is None or not key.startswith(_PREFIX):
            raise AdapterFileError(
                f"{one_line(directory)}: tensor {key!r} is none that convpeft knows of peft. Save it with "
                "lora_bias=False, bias='none' and LoRA, DoRA, LoHa or LoKr alone."
            )
        path = key[len(_PREFIX) : found.start()]
        layers.setdefault(path, {})[found.group(1).removesuffix(".weight")] = value
    return layers


def _read_layer(
    directory: Path,
    model: nn.Module,
    sites: Mapping[str, Site],
    path: str,
    tensors: dict[str, Tensor],
    options: PeftOptions,
    *,
    head: str | None,
) -> Update:
    """One layer of peft as an update."""
    site, where = sites.get(path), one_line(directory)
    if site is None or site.transposed:
        raise AdapterFileError(
            f"{where}: the model has no convolution or linear layer {path!r}, which peft's file names. "
            "Load the right base; modules_to_save is read for such layers alone."
        )
    if tensors.keys() <= {"weight", "bias"} and "weight" in tensors:
        whole = HEAD if path == head else "full"
        if whole == "full" and ("bias" in tensors) != site.bias:
            raise AdapterFileError(f"{where}: {site.describe()} has a bias only on one side. Load the right base.")
        if tensors["weight"].shape[1:] != site.shape[1:]:
            raise AdapterFileError(f"{where}: {site.describe()} has another width there. Load the right base.")
        return Update(site, whole, tensors)
    alpha = options.alpha_of(path)
    try:
        if options.kind == "LORA":
            if site.groups > 1:
                raise AdapterFileError(
                    f"{where}: {site.describe()}: peft's LoRA on a grouped convolution mixes groups, which is no "
                    "change of its weight. Leave the layer out, or use LoHa or LoKr."
                )
            rank = tensors["lora_A"].shape[0]
            found = {"up": tensors["lora_B"].flatten(1), "down": tensors["lora_A"].flatten(1)}
            scale = alpha / (rank**0.5 if options.rslora else rank)
            if options.dora:
                found["gain"] = tensors["lora_magnitude_vector"].flatten() / filter_lengths(model, site, "peft").cpu()
            if len(tensors) != 2 + options.dora:
                raise KeyError("lora_magnitude_vector")
            return Update(site, "dora" if options.dora else "lora", found, scale)
        if options.kind == "LOHA":
            found, rank = hadamard(tensors, site)
            return Update(site, "loha", found, alpha / rank)
        found, rank = kronecker(tensors, site)
        rank = options.rank_of(path) if rank is None else rank
        return Update(site, "lokr", found, alpha / rank, {"factor": options.factor, "decompose_both": options.both})
    except (KeyError, ValueError, IndexError, RuntimeError, ArithmeticError) as error:
        raise AdapterFileError(
            f"{where}: {site.describe()} lacks a tensor, or has one that does not fit ({one_line(error)}). "
            "Get the file again."
        ) from None


def _config_of(updates: Sequence[Update]) -> dict[str, Any]:
    """The description, apart from what each layer adds to its patterns."""
    factors = [update for update in updates if not update.whole]
    methods = {update.method for update in factors}
    if len(methods) > 1 or not methods <= {"lora", "dora", "loha", "lokr"}:
        update = next(u for u in factors if len(methods) > 1 or u.method not in ("lora", "dora", "loha", "lokr"))
        raise ModelError(
            f"{update.site.describe()}: method {update.method!r} with {sorted(methods - {update.method})}: a file of "
            "peft holds one of lora, dora, loha, lokr for all layers. Use convpeft.save."
        )
    if not factors:
        raise ModelError("no layer has factors; peft needs one at least. Save the weights themselves instead.")
    method = factors[0].method
    config: dict[str, Any] = {
        "peft_type": {"loha": "LOHA", "lokr": "LOKR"}.get(method, "LORA"),
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "target_modules": "(" + "|".join(re.escape(update.path) for update in factors) + ")",
        "modules_to_save": [update.path for update in updates if update.whole] or None,
        "r": 1,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    if method in ("lora", "dora"):
        return config | {"lora_alpha": 1, "use_dora": method == "dora", "use_rslora": False, "bias": "none"}
    config |= {"alpha": 1, "use_effective_conv2d": False}
    if method == "lokr":
        odd = [update for update in factors if update.options != factors[0].options]
        if odd:
            raise ModelError(
                f"{odd[0].site.describe()}: factor={odd[0].options['factor']} is not that of the other layers, and "
                "peft's decompose_factor is one for all. Use convpeft.save."
            )
        config |= {
            "decompose_factor": factors[0].options["factor"],
            "decompose_both": any("up_first" in update.tensors for update in factors),
        }
    return config


def _written_layer(model: nn.Module, update: Update, config: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of one layer in peft's form; its rank and alpha go into the patterns."""
    site, tensors = update.site, update.tensors
    if site.transposed:
        raise ModelError(f"{site.describe()}: peft has no adapters for transposed convolutions. Use convpeft.save.")
    if update.whole:
        has_bias = (
            site.bias if update.method == "full" else model.get_submodule(site.path)._parameters["bias"] is not None
        )
        if "bias" in tensors and not has_bias:
            raise ModelError(
                f"{site.describe()} has no bias, and its new head has one, which modules_to_save has no place for. "
                "Use convpeft.save."
            )
        return tensors
    if update.method in ("lora", "dora"):
        if site.groups > 1:
            raise ModelError(
                f"{site.describe()}: peft's LoRA on a grouped convolution is no change of its weight, so this adapter "
                "has no form there. Leave the layer out (exclude=['grouped', 'depthwise']), or use loha or lokr."
            )
        up, down = tensors["up"], tensors["down"]
        rank, alpha = down.shape[0], update.scale * down.shape[0]
        ones = [1] * len(site.kernel)
        found = {
            "lora_A.weight": down.reshape(rank, *site.shape[1:]),
            "lora_B.weight": up.reshape(*up.shape, *ones),
        }
        if update.method == "dora":
            length = tensors["gain"] * filter_lengths(model, site, "peft")
            found["lora_magnitude_vector"] = length.reshape(1, -1, *ones) if ones else length
    else:
        if len(site.kernel) > 2:
            raise ModelError(f"{site.describe()}: peft has no {update.method} for 3-d convolutions. Use convpeft.save.")
        if update.method == "loha":
            found, rank = renamed_hadamard(tensors), tensors["down_first"].shape[0]
            alpha = update.scale * rank
        else:
            both = bool(config["decompose_both"])
            tensors, rank = kronecker_plan(tensors, site, both=both)
            found, alpha = renamed_kronecker(tensors, site), update.scale * rank
    config["rank_pattern"][pattern_of(update.path)] = rank
    config["alpha_pattern"][pattern_of(update.path)] = alpha
    return found


def _warn_geometry(sites: Sequence[Site], kind: str) -> None:
    """Name the layers on which peft's own forward pass is not what its weights say."""
    dilated = kind == "LORA"
    odd = [
        site.path
        for site in sites
        if site.padding_mode != "zeros" or (dilated and any(step != 1 for step in site.dilation))
    ]
    warn_layers(
        odd,
        "peft is only right with zero padding, and LoRA without dilation; what its merged weight means is taken",
        level=4,
    )
