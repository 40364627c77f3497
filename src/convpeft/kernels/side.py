"""Low-rank convolutions beside the frozen one: two more operations and an addition, and no whole weight is built."""

from __future__ import annotations

from torch import Tensor

from convpeft.kernels.frozen import frozen
from convpeft.kernels.operations import Operation
from convpeft.kernels.weights import filters_of


def side(
    x: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor, down: Tensor, scale: Tensor | None, operation: Operation
) -> Tensor:
    """Run a layer with the weight scale * W + up @ down as the frozen layer plus two thin ones; x and z are kept.

    Args:
        x: Input (batch, in, *space).
        weight: Frozen weight (out, in, *kernel).
        bias: (out) or None.
        up: (out, rank), every scale included.
        down: (rank, in * prod(kernel)).
        scale: Constant factor for each filter of the frozen weight (out), or None.
        operation: The layer without its weight.

    Returns:
        Output (batch, out, *space) in the type of x.
    """
    own = weight if scale is None else weight * scale.to(up.dtype).view(-1, *[1] * (weight.ndim - 1))
    z = operation.run(x, filters_of(down, weight, x), None)
    return frozen(x, own, bias, operation) + operation.mix(z, up.to(x.dtype))
