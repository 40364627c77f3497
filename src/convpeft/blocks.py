"""Where a branch over several layers can sit: the blocks of a model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from convpeft.sites import Site, all_sites, walk
from convpeft.trials import try_inputs

_LAYERS = (_ConvNd, nn.Linear)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def find_blocks(model: nn.Module) -> tuple[Site, ...]:
    """List the blocks: modules with two layers or more, one of them a spatial convolution, from one tensor to one.

    A block is neither a container nor a group of blocks, and there are two or more. Channels are those of a trial run
    on one blank image, which leaves the model as it was; blocks that take or return anything but one tensor
    `(batch, channels, *space)`, or that change their input in place, are left out.

    Raises:
        ModelError: If there are candidates and the model runs on no blank image of the usual sizes.
    """
    candidates = {path: module for path, module in walk(model) if path and _is_candidate(module)}
    blocks = {path: module for path, module in candidates.items() if not _holds_blocks(module, candidates)}
    outermost = {
        path: module
        for path, module in blocks.items()
        if not any(path.startswith(f"{other}.") for other in blocks if other != path)
    }
    if len(outermost) < 2:  # a single one is a head with a hidden layer, or the whole network in a wrapper
        return ()
    stages = {site.path: (site.stage, site.last_stage) for site in all_sites(model)}
    shapes = try_inputs(
        model,
        lambda blank: _shapes(model, outermost, blank),
        batch=1,
        task="the model's blocks cannot be found",
        remedy="Choose a method for layers, or load the model with convpeft.load_model, which knows the size.",
    )
    sites: list[Site] = []
    for path, (given, made) in shapes.items():
        ones = [1] * (len(given) - 2)
        inside = next((stages[other] for other in stages if other.startswith(f"{path}.")), (None, False))
        stage, last = stages.get(path, inside)
        shape = (made[1], given[1], *ones)
        sites.append(Site(path, "block", shape, stage=stage, last_stage=last, tensor=""))
    return tuple(sites)


def _is_candidate(module: nn.Module) -> bool:
    if isinstance(module, (*_CONTAINERS, _ConvNd)):
        return False
    layers = [each for _, each in walk(module) if isinstance(each, _LAYERS)]
    return len(layers) > 1 and any(isinstance(each, _ConvNd) and math.prod(each.kernel_size) > 1 for each in layers)


def _holds_blocks(module: nn.Module, candidates: dict[str, nn.Module]) -> bool:
    """Whether the module is a stage: it holds nothing but a candidate, two of a class, or a container with some."""
    known = {id(each) for each in candidates.values()}
    direct = [type(child) for child in module.children() if id(child) in known]
    layered = [child for child in module.children() if any(isinstance(each, _LAYERS) for _, each in walk(child))]
    if len(set(direct)) < len(direct) or len(direct) == len(layered) == 1:
        return True
    return any(
        isinstance(each, _CONTAINERS) and any(id(child) in known for child in each.children())
        for _, each in walk(module)
    )


def _shapes(model: nn.Module, blocks: dict[str, nn.Module], blank: Tensor) -> dict[str, tuple[torch.Size, torch.Size]]:
    """Shapes of input and output of each block that takes and returns one tensor."""
    found: dict[str, tuple[torch.Size, torch.Size]] = {}
    unfit: set[str] = set()
    versions: dict[str, int] = {}

    def before(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            versions[path] = args[0]._version
        else:
            unfit.add(path)

    def after(path: str, args: tuple[Any, ...], output: Any) -> None:
        whole = path not in unfit and isinstance(output, Tensor) and output.ndim == args[0].ndim == blank.ndim
        if not whole or args[0]._version != versions[path]:
            unfit.add(path)
            return
        shapes = (args[0].shape, output.shape)
        channels = [shape[1] for shape in found.get(path, shapes)]
        if channels != [shape[1] for shape in shapes]:
            unfit.add(path)
        found[path] = shapes

    handles: list[Any] = []
    try:
        for path, block in blocks.items():
            handles.append(
                block.register_forward_pre_hook(
                    lambda _, args, kwargs, path=path: before(path, args, kwargs), with_kwargs=True
                )
            )
            handles.append(block.register_forward_hook(lambda _, args, output, path=path: after(path, args, output)))
        with torch.no_grad():
            model(blank)
    finally:
        for handle in handles:
            handle.remove()
    return {path: shapes for path, shapes in found.items() if path not in unfit}
