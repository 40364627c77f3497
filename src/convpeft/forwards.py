"""What surrounds the forward of an adapted model in training: the layout of its images, and the norms it may fold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from convpeft.folding import begin, end
from convpeft.injection import adapted_layers
from convpeft.kernels import Computing, is_traced
from convpeft.kernels.masks import Masks
from convpeft.low_rank import LowRank
from convpeft.slots import State, slots_of
from convpeft.tracing import made_contiguous, read_graph


class Surroundings:
    """The two hooks on a model: before and after its forward."""

    def __init__(self, state: State) -> None:
        self._state = state

    def enter(
        self, model: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Look at the model once, tell its layers that it runs, and turn the images."""
        if torch.compiler.is_compiling():
            return None
        place, images = _images(args, named)
        active = model.training and torch.is_grad_enabled() and (images is None or not is_traced(images))
        computing = self._state.computing
        if active and not computing.looked:
            _look(model, computing)
        turned = active and images is not None and _wants_channels_last(images, computing)
        begin(model, active=active, masks=_masks(computing) if active else None, turned=turned)
        if images is None or not active:
            return None
        computing.used = "channels_last" if turned else "contiguous"
        if not turned:
            return None
        images = images.contiguous(memory_format=torch.channels_last)
        return ((images, *args[1:]), named) if place is None else (args, named | {place: images})

    def leave(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Undo that; an output that is images comes out as it would have."""
        if torch.compiler.is_compiling():
            return None
        finished = output is not None
        return made_contiguous(output) if end(model, finished=finished) and finished else None


def surround(model: nn.Module, state: State) -> None:
    """Have the forward of a model announced to its layers; what was found of the model before may have changed."""
    state.computing.look_again()
    if not any(is_ours(hook) for hook in model._forward_pre_hooks.values()):
        surroundings = Surroundings(state)
        model.register_forward_pre_hook(surroundings.enter, with_kwargs=True)
        model.register_forward_hook(surroundings.leave, always_call=True)


def leave_alone(model: nn.Module) -> None:
    """Take that off again."""
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key in [key for key, hook in hooks.items() if is_ours(hook)]:
            del hooks[key]
            model._forward_hooks_always_called.pop(key, None)
            model._forward_pre_hooks_with_kwargs.pop(key, None)


def is_ours(hook: Any) -> bool:
    """Whether a hook is one of those above."""
    return isinstance(getattr(hook, "__self__", None), Surroundings)


def _images(args: tuple[Any, ...], named: dict[str, Any]) -> tuple[str | None, Tensor | None]:
    """What a model is called with first, if it is images, and the name that it is given by."""
    place, first = (None, args[0]) if args else next(iter(named.items()), (None, None))
    is_images = isinstance(first, Tensor) and first.ndim == 4 and first.is_floating_point()
    return place, first if is_images else None


def _look(model: nn.Module, computing: Computing) -> None:
    """Find what may be folded, whether the layout may change and whether any layer keeps its input."""
    graph = read_graph(model)
    layers = dict(adapted_layers(model))
    computing.looked, computing.kept = True, dict(graph.reasons)
    computing.stays = graph.stays or _what_breaks(model)
    for layer in layers.values():
        slots_of(layer).norm = None
    for path, behind in graph.followers.items():
        if path in layers and behind in layers:
            around = _parents(path) ^ _parents(behind)
            slots_of(layers[path]).norm = (layers[behind], *(model.get_submodule(each) for each in around))
    computing.pools, computing.lean = graph.pools, _is_lean(layers.values())


def _parents(path: str) -> set[str]:
    """Paths of all modules around one."""
    names = path.split(".")
    return {".".join(names[:depth]) for depth in range(len(names))}


def _what_breaks(model: nn.Module) -> str | None:
    """Why PyTorch cannot run a model on images with channels nearest in memory."""
    for layer in model.modules():
        if isinstance(layer, nn.GroupNorm) and any(parameter.requires_grad for parameter in layer.parameters()):
            # where the input of the norm needs no gradient, PyTorch 2.13 ends the whole process
            return "a GroupNorm is trained"
    return None


def _is_lean(layers: Iterable[nn.Module]) -> bool:
    """Whether low-rank updates with a fixed `down` are all that is trained of the convolutions."""
    trained = [
        part
        for layer in layers
        if isinstance(layer, _ConvNd)
        for part in slots_of(layer).active()
        if any(parameter.requires_grad for parameter in part.parameters())
    ]
    return bool(trained) and all(isinstance(part, LowRank) and part.keeps_down for part in trained)


def _masks(computing: Computing) -> Masks | None:
    """What keeps bytes instead of numbers; the definition keeps what PyTorch keeps."""
    if computing.kernel == "weight" or not (computing.lean or computing.pools):
        return None
    return Masks(activations=computing.lean)


def _wants_channels_last(images: Tensor, computing: Computing) -> bool:
    """It is faster wherever it was measured: on CPU, and on tensor cores, which half precision and TF32 run on."""
    if computing.layout != "auto":
        return computing.layout == "channels_last"
    if computing.stays is not None:
        return False
    device = images.device.type
    if device != "cuda":
        return device == "cpu"
    half = images.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(device)
    if half:
        return True
    tensor_cores = torch.cuda.get_device_capability(images.device) >= (8, 0)
    return images.dtype is torch.float32 and tensor_cores and torch.backends.cudnn.allow_tf32
