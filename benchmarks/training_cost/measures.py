"""What is counted and how times become ratios."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def saved_bytes(forward: Callable[[], Any], own: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps at the end of a forward, each storage once, without the storages of `own`."""
    left_out = {tensor.untyped_storage().data_ptr() for tensor in own}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in left_out:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # keeps the storage, so that no other gets its address

    with saved_tensors_hooks(pack, lambda kept: kept):
        loss = forward()
    del loss
    return sum(sizes.values())


class _Operations(TorchDispatchMode):
    """PyTorch's own formulas, without the module hooks of its FlopCounterMode: hooks may change what is run."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if func is torch.ops.aten.convolution_backward.default:
            self.total += _of_convolution_backward(*args)
        elif formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _of_convolution_backward(*args: Any) -> int:
    """As much as the forward for each of input and weight; PyTorch's formula ignores the groups of the weight."""
    grad, x, weight, transposed, mask = *args[:3], args[7], args[10]
    return sum(mask[:2]) * conv_flop_count(x.shape, weight.shape, grad.shape, transposed=transposed)


def operations(forward: Callable[[], Any], backward: Callable[[Any], None]) -> tuple[int, int]:
    """Multiplications and additions of one forward, and of the backward behind it."""
    with _Operations() as first:
        loss = forward()
    with _Operations() as second:
        backward(loss)
    return first.total, second.total


def peak_growth(step: Callable[[], None], steps: int, device: str = "cpu") -> int:
    """By how many bytes the largest size during some steps exceeds that before: resident, or allocated on a GPU."""
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(steps):
            step()
        return torch.cuda.max_memory_allocated() - before
    before = _resident("VmRSS")
    with contextlib.suppress(OSError):
        _RESET.write_text("5")  # forget the largest size so far
    for _ in range(steps):
        step()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def alternate(first: Callable[[], Any], second: Callable[[], Any], rounds: int, steps: int = 1) -> list[float]:
    """Time of `first` through that of `second`, round by round; each goes first in every other round."""
    ratios = []
    for number in range(-2, rounds):  # two rounds warm up
        pair = [first, second] if number % 2 else [second, first]
        times = {call: seconds(call, steps) for call in pair}
        if number >= 0:
            ratios.append(times[first] / times[second])
    return ratios


def seconds(call: Callable[[], Any], steps: int = 1) -> float:
    """Of one call, the mean of some; a GPU has done its work before and after."""
    _wait()
    started = time.perf_counter()
    for _ in range(steps):
        call()
    _wait()
    return (time.perf_counter() - started) / steps


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def pairwise(times: Sequence[float], of_baseline: Sequence[float]) -> list[float]:
    """Ratios of the two times of each round."""
    return [own / base for own, base in zip(times, of_baseline, strict=True)]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def without_gradients(call: Callable[[Tensor], Any], images: Tensor) -> Callable[[], Any]:
    def run() -> Any:
        with torch.no_grad():
            return call(images)

    return run
