"""Measure which kernel is the fastest for each layer, and remember it on disk: the layers of one shape once."""

from __future__ import annotations

import copy
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from convpeft._version import __version__
from convpeft.adapters import Module
from convpeft.attachment import require_state
from convpeft.errors import ModelError, one_line
from convpeft.injection import adapted_layers
from convpeft.kernels import KernelPlan, find_cheaper
from convpeft.slots import slots_of
from convpeft.sparing import in_training
from convpeft.speed import set_kernels
from convpeft.writing import write_file

_KERNELS = ("weight", "side", "hybrid", "fused")
_ROUNDS = 5  # measurements of each kernel, after one that warms up
_CLEARLY = 0.95  # of the usual kernel's time; one layer's times vary by a few percent
_LARGEST = 16 * 2**20  # bytes of a cache that is read

Times = dict[str, float]  # seconds by kernel


@dataclass(frozen=True)
class _Input:
    """What a layer was given in training."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    channels_last: bool
    needs_gradient: bool
    autocast: torch.dtype | None


def autotune(model: nn.Module, images: Tensor, *, told: Callable[[int, int], None] | None = None) -> KernelPlan:
    """Measure the kernels of each adapted layer on random numbers and choose the fastest, as `set_kernels` would.

    Another kernel than the usual one is chosen where it takes clearly less time, 5 % or more. Where `down` is not
    trained, a layer is left as it is: its kernel is chosen for its memory. What was measured is kept in
    `$XDG_CACHE_HOME/convpeft/kernels.json` (by default `~/.cache`) and not measured again for a layer of the same
    shape, rank, input, types, layout, threads, device and versions. The model is not changed by measuring.

    Args:
        model: A model with adapters.
        images: A batch (batch, channels, height, width) as it will be trained on.
        told: Is called with how many shapes are measured, and of how many.

    Returns:
        The plan; `sites` names the layers that were measured.

    Raises:
        ModelError: If no adapter is attached, or the model does not run on the images.
    """
    computing = require_state(model).computing
    layers = dict(adapted_layers(model))
    inputs = _watch(model, layers, images)
    keys = {path: _key(layers[path], given) for path, given in inputs.items() if _has_choice(layers[path], given)}
    known = _read_cache()
    missing = {key: path for path, key in keys.items() if key not in known}
    for done, (key, path) in enumerate(missing.items()):
        if told is not None:
            told(done, len(missing))
        known[key] = _measure(model, layers[path], inputs[path])
    if missing:
        _write_cache(known)
        if told is not None:
            told(len(missing), len(missing))
    best = {path: _choose(known[key], _usual(layers[path], inputs[path])) for path, key in keys.items()}
    layout = computing.used or computing.layout
    sites = {**computing.forced, **best}
    set_kernels(model, kernel=computing.kernel, layout=computing.layout, fold=computing.fold, sites=sites)
    return KernelPlan(computing.kernel, layout, computing.fold, sites, {}, {})


def cache_path() -> Path:
    """Where measurements are kept."""
    folder = os.environ.get("XDG_CACHE_HOME")
    return (Path(folder) if folder else Path("~/.cache").expanduser()) / "convpeft" / "kernels.json"


def _watch(model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> dict[str, _Input]:
    """What each adapted layer is given first when the model is trained on these images."""
    found: dict[str, _Input] = {}

    def note(path: str, args: tuple[Any, ...]) -> None:
        x = args[0] if args else None
        if type(x) is Tensor and path not in found:  # no trace of fx
            last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
            device = x.device.type
            autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
            found[path] = _Input(tuple(x.shape), x.dtype, x.device, last, x.requires_grad, autocast)

    def noting(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: note(path, args)

    handles = [layer.register_forward_pre_hook(noting(path)) for path, layer in layers.items()]
    try:
        with in_training(model):
            model(images)
    except (RuntimeError, ValueError) as error:
        shape = tuple(images.shape)
        raise ModelError(f"the model does not run on images {shape} ({one_line(error, 160)}). Give a batch.") from None
    finally:
        for handle in handles:
            handle.remove()
    return found


def _has_choice(layer: nn.Module, given: _Input) -> bool:
    """Whether more than the definition can compute the layer, and time alone decides."""
    return _find(layer, given, "hybrid") == "hybrid"


def _usual(layer: nn.Module, given: _Input) -> str:
    """What is chosen without measuring."""
    return _find(layer, given, "auto")


def _find(layer: nn.Module, given: _Input, asked: str) -> str:
    part = _only_part(layer)
    if part is None:
        return "weight"
    x = torch.empty((), dtype=given.dtype, device=given.device).expand(given.shape)
    product = find_cheaper(part, x, cast(Tensor, layer._parameters["weight"]), asked=asked)
    return "weight" if product is None else product.kernel


def _choose(times: Times, usual: str) -> str:
    """The fastest kernel, or the usual one where the gain may be chance."""
    best = min(times, key=times.__getitem__)
    return best if times[best] < _CLEARLY * times[usual] else usual


def _only_part(layer: nn.Module) -> Module | None:
    parts = [part for part in slots_of(layer).active() if isinstance(part, Module)]
    return parts[0] if len(parts) == 1 and parts[0].site.tensor == "weight" else None


def _key(layer: nn.Module, given: _Input) -> str:
    """Everything that the time of a layer depends on."""
    part, device = cast(Module, _only_part(layer)), given.device.type
    site = {key: value for key, value in asdict(part.site).items() if key not in ("path", "stage", "last_stage")}
    told = {
        "site": site,
        "bias": layer._parameters.get("bias") is not None,
        "method": type(part).__name__,
        "factors": [list(each.shape) for each in part.parameters()],
        "input": {key: str(value) for key, value in asdict(given).items() if key != "device"},
        "weight": str(cast(Tensor, layer._parameters["weight"]).dtype),
        "device": torch.cuda.get_device_name(given.device) if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "convpeft": __version__,
    }
    return json.dumps(told, sort_keys=True, default=str)


def _processor() -> str:
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {os.cpu_count()}"


def _measure(model: nn.Module, layer: nn.Module, given: _Input) -> Times:
    """Seconds of a forward and a backward by each kernel: medians of interleaved rounds."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    probe = copy.deepcopy(layer, memo).train()
    for hooks in (probe._forward_hooks, probe._forward_pre_hooks, probe._backward_hooks, probe._backward_pre_hooks):
        hooks.clear()
    slots = slots_of(probe)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(given.shape, generator=generator).to(given.device, given.dtype)
    if given.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_(given.needs_gradient)
    trained = [parameter for parameter in slots.parameters() if parameter.requires_grad]
    wanted = [x, *trained] if given.needs_gradient else trained

    def run(kernel: str) -> None:
        slots.state.computing.forced = {slots.path: kernel}
        with torch.autocast(given.device.type, given.autocast, enabled=given.autocast is not None):
            output = probe(x)
        torch.autograd.grad(output, wanted, torch.ones_like(output), allow_unused=True)

    times: dict[str, list[float]] = {kernel: [] for kernel in _KERNELS}
    with torch.random.fork_rng(devices=[given.device] if given.device.type == "cuda" else []), torch.enable_grad():
        for number in range(_ROUNDS + 1):
            for kernel in _KERNELS:
                took = _seconds(lambda kernel=kernel: run(kernel), given.device)
                if number:
                    times[kernel].append(took)
    return {kernel: statistics.median(each) for kernel, each in times.items()}


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1000


def read_times(path: Path) -> dict[str, Times]:
    """The measurements of a file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it holds anything else.
        RecursionError: If it is nested without end.
    """
    if path.stat().st_size > _LARGEST:
        raise ValueError("it is too large")
    return dict(_entries(json.loads(path.read_text(encoding="utf-8"))))


def _read_cache() -> dict[str, Times]:
    """What was measured before; a cache that cannot be used is left out, and that is said."""
    path = cache_path()
    try:
        return read_times(path) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        why = one_line(error, 120)
        warnings.warn(f"{path}: cannot be used ({why}). Kernels are measured anew.", UserWarning, stacklevel=3)
        return {}


def _entries(content: Any) -> Iterator[tuple[str, Times]]:
    if not isinstance(content, dict):
        raise ValueError("it is no table")
    for key, times in cast(dict[str, Any], content).items():
        whole = isinstance(times, dict) and set(cast(dict[str, Any], times)) == set(_KERNELS)
        if not whole or not all(type(each) is float and 0 < each < 1e6 for each in times.values()):
            raise ValueError("an entry is no table of times")
        yield key, times


def _write_cache(known: Mapping[str, Times]) -> None:
    path = cache_path()
    try:
        write_file(path, json.dumps(known, indent=0).encode())
    except OSError as error:
        why = error.strerror or type(error).__name__
        warnings.warn(f"{path}: cannot be written ({why}). Kernels will be measured again.", UserWarning, stacklevel=3)
