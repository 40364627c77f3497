"""Choose how an adapted model is computed while it is trained, and see what was chosen."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from convpeft.attachment import require_state
from convpeft.errors import OptionError, nearest
from convpeft.injection import adapted_layers
from convpeft.kernels import KERNELS, LAYOUTS, KernelPlan
from convpeft.slots import slots_of


def set_kernels(
    model: nn.Module,
    *,
    kernel: str = "auto",
    layout: str = "auto",
    fold: bool = True,
    sites: Mapping[str, str] | None = None,
) -> None:
    """Choose how an adapted model is computed while it is trained. The function is the same, its cost is not.

    Evaluation, saving and merging take the definition, whatever is chosen here.

    Args:
        model: A model with adapters.
        kernel: `auto`, what is estimated to cost least for each layer; or for every layer that can: `weight`, the
            definition, which builds the effective weight and lets PyTorch do the rest; `rebuilt`, which builds it once
            more for the backward pass instead of keeping it; `side`, low-rank layers beside the frozen one; `hybrid`,
            one operation with the effective weight forward and one backward, and low-rank work for the factors;
            `fused`, for GPUs, with the fewest launches. Where `down` is not trained, `hybrid` keeps rank-r activations
            only (`lean`).
        layout: How images lie in memory inside the network: `auto`, `contiguous` or `channels_last`, which is faster
            on CPU. `auto` takes the latter where the network is seen not to mind.
        fold: Let convolutions do the work of the frozen norm behind them, where that saves time.
        sites: Kernel of single layers, by path, as `kernels_of` gives it.

    Raises:
        OptionError: For an unknown kernel, layout or layer.
        ModelError: If no adapter is attached.
    """
    state = require_state(model)
    for name, value, known in (("kernel", kernel, KERNELS), ("layout", layout, LAYOUTS)):
        if value not in known:
            raise OptionError(f"{name}={value!r} does not exist. {nearest(value, known)}")
    layers = {slots_of(layer).path for _, layer in adapted_layers(model)}
    for path, value in (sites or {}).items():
        if path not in layers:
            raise OptionError(f"sites: no adapted layer is called {path!r}. {nearest(path, sorted(layers))}")
        if value not in KERNELS:
            raise OptionError(f"sites: kernel {value!r} of {path!r} does not exist. {nearest(value, KERNELS)}")
    computing = state.computing
    computing.kernel, computing.layout, computing.fold = kernel, layout, fold
    computing.forced = dict(sites or {})
    computing.look_again()


def keep_kernels(model: nn.Module) -> KernelPlan:
    """Have later forwards in training choose what the last one chose, whatever the size of their batch.

    Raises:
        ModelError: If no adapter is attached.
    """
    plan, computing = kernels_of(model), require_state(model).computing
    computing.layout, computing.forced = plan.layout, dict(plan.sites)
    return plan


def kernels_of(model: nn.Module) -> KernelPlan:
    """How the last forward in training was computed.

    Raises:
        ModelError: If no adapter is attached.
    """
    computing = require_state(model).computing
    kept = {**computing.kept, **computing.unfolded}
    return KernelPlan(
        computing.kernel,
        computing.used or computing.layout,
        computing.fold,
        dict(computing.taken),
        dict(computing.folded),
        {path: why for path, why in kept.items() if path not in computing.folded},
    )
