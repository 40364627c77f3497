"""`convpeft inspect --cost`: what training a model with adapters costs, beside full fine-tuning of the same model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from convpeft.console import print_json, say, show_table, warnings_as_lines

if TYPE_CHECKING:
    from torch import nn

    from convpeft.costing import LayerCost, TrainingCost

_METHOD, _BATCH = "lora", 8


def show_cost(
    path: str, *, method: str | None, batch: int | None, size: int | None, weights: Path | None, as_json: bool
) -> None:
    """Print what a step of training costs.

    Args:
        path: A model as `train --model` takes it, or a run's directory or an adapter's.
        method: What to attach to a model; default: lora.
        batch: Images; default: 8.
        size: Pixels a side; default: the model's own.
        weights: The base's weights, where path is an adapter.
        as_json: Whether a program reads it.
    """
    import torch

    from convpeft.costing import training_cost
    from convpeft.errors import OptionError
    from convpeft.models import preprocessing_of

    with warnings_as_lines():
        model, name = _adapted(path, method, weights)
    preprocessing = preprocessing_of(model)
    if preprocessing is None:
        raise OptionError(f"model {path!r} tells no preprocessing. Load it with convpeft.load_model.")
    height, width = preprocessing.size if size is None else (size, size)
    shape = (_BATCH if batch is None else batch, preprocessing.channels, height, width)
    cost = training_cost(model, torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    if as_json:
        print_json({"model": path, "method": name, "images": list(shape)} | cost.to_dict())
        return
    images = "x".join(map(str, shape))
    show_table(f"{path}, {name}: a step of training on images {images}", *_layer_table(cost.layers), numbers_from=3)
    show_table("beside full fine-tuning in plain PyTorch", *_totals(cost))
    why = f" ({cost.stays})" if cost.stays is not None else ""
    say(f"layout of images inside the network: {cost.layout}{why}")


def _adapted(path: str, method: str | None, weights: Path | None) -> tuple[nn.Module, str]:
    """The model with an adapter, and the name of its method."""
    from convpeft.attachment import attach, require_state
    from convpeft.errors import OptionError
    from convpeft.models import from_adapter, load_model
    from convpeft.writing import standing

    if not standing(Path(path)).is_dir():
        model = load_model(path, weights=weights, pretrained=False)  # the cost does not depend on the numbers
        return attach(model, method or _METHOD), method or _METHOD
    if method is not None:
        raise OptionError(f"--method {method}: {path} has a method already. Leave the option out.")
    model = from_adapter(path, weights=weights)
    return model, "+".join(record.method for record in require_state(model).names.values())


def _layer_table(layers: tuple[LayerCost, ...]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    from convpeft.reporting import format_bytes

    rows = [
        (
            layer.path,
            layer.kernel,
            f"folds {layer.norm}" if layer.norm is not None else layer.unfolded or "-",
            f"{layer.multiplications:,}",
            format_bytes(layer.kept),
        )
        for layer in layers
    ]
    return ("layer", "kernel", "norm behind it", "multiplications", "keeps"), rows


def _totals(cost: TrainingCost) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    from convpeft.reporting import format_bytes

    own, full = cost.adapted, cost.full
    figures = (
        ("multiplications forward", own.forward, full.forward, "{:,}".format),
        ("multiplications backward", own.backward, full.backward, "{:,}".format),
        ("multiplications", own.multiplications, full.multiplications, "{:,}".format),
        ("kept for the backward pass", own.kept, full.kept, format_bytes),
        ("parameters trained", own.trained, full.trained, "{:,}".format),
    )
    rows = [(name, form(one), form(other), f"{one / max(other, 1):.3g}") for name, one, other, form in figures]
    return ("", "with the adapter", "full fine-tuning", "ratio"), rows
