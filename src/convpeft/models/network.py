"""What every kind of source gives, a network that can be built, and how a state is loaded into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from convpeft.errors import ModelError
from convpeft.models.preprocessing import Preprocessing
from convpeft.models.stems import first_convolution, input_channels, set_input_channels
from convpeft.models.weights import StateDict, head_difference, load_strictly, names_differ


@dataclass(frozen=True)
class Network:
    """A network that a source string names, not built yet.

    Args:
        build: Called with numbers of classes and of input channels; None stands for the network's own. Random weights.
        preprocessing: What the network expects with its own number of channels.
        pretrained: As ``build``, with weights that are fetched; None where there are none to fetch.
        translate: Turns a file of an older form into today's names; called only when the names differ.
        without_weights: Said to the user who asked for pretrained weights where there are none to fetch.
    """

    build: Callable[[int | None, int | None], nn.Module]
    preprocessing: Preprocessing
    pretrained: Callable[[int | None, int | None], nn.Module] | None = None
    translate: Callable[[StateDict], StateDict] | None = None
    without_weights: str | None = None


def load_state(
    network: Network,
    state: StateDict,
    *,
    num_classes: int | None,
    in_channels: int | None,
    fresh_head: bool,
    file: str,
) -> nn.Module:
    """Build the network and load a state strictly.

    Without ``num_classes`` the model gets as many classes as the state has; with it, another number is an error, or
    a fresh head where that is allowed. A first convolution of another number of channels is adapted.

    Args:
        network: What to build.
        state: Named tensors.
        num_classes: Classes that were asked for, or None.
        in_channels: Input channels that were asked for; None is the network's own number.
        fresh_head: Whether a head of another size may start random.
        file: The name that an error begins with.

    Raises:
        ModelError: If the state does not fit.
    """
    model = network.build(num_classes, None)
    own_channels = input_channels(model) or network.preprocessing.channels
    if network.translate and names_differ(model, state):
        state = network.translate(state)
    _take_channels_of(state, model, source=file)
    head = head_difference(model, state)
    head_tensors: set[str] = set()
    if head and num_classes is None:
        model = network.build(head.in_file, None)
        _take_channels_of(state, model, source=file)
    elif head and fresh_head:
        head_tensors = {name for name in state if name.rpartition(".")[0] == head.path}
        state = {name: tensor for name, tensor in state.items() if name not in head_tensors}
    elif head:
        raise ModelError(
            f"{file}: its head {head.path!r} has {head.in_file} classes, expected {head.in_model}; "
            f"pass num_classes={head.in_file} (attach(..., num_classes={head.in_model}) then adds a fresh head)."
        )
    load_strictly(model, state, file=file, allow_missing=head_tensors)
    channels = in_channels or own_channels
    if channels != (input_channels(model) or own_channels):
        set_input_channels(model, channels, source=file)
    return model


def _take_channels_of(state: StateDict, model: nn.Module, *, source: str) -> None:
    """Give the model the number of input channels that the state's first convolution has."""
    stem = first_convolution(model)
    weight = state.get(f"{stem[0]}.weight") if stem else None
    if stem and weight is not None and weight.ndim == 4 and 1 <= weight.shape[1] <= 4 and input_channels(model):
        set_input_channels(model, weight.shape[1], source=source)
