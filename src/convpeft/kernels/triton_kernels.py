"""What takes many small launches otherwise, by one kernel of Triton each; imported only where there is a GPU."""

# Triton comes with the CUDA builds of PyTorch alone.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _COLUMNS = 16, 128  # a block of the weight
_CLOSE = 1e-4


def weight_of(
    weight: Tensor, up: Tensor, down: Tensor, scale: Tensor | None, dtype: torch.dtype, *, channels_last: bool
) -> Tensor:
    """Build scale * (W + up @ down), added up in the type of the factors, float32 at least.

    Args:
        weight: Frozen weight (out, in, *kernel), in either layout.
        up: (out, rank).
        down: (rank, in * prod(kernel)) of the same type.
        scale: (out) or None for one.
        dtype: Type of the result.
        channels_last: Layout of the result, where it has two dimensions of space.

    Returns:
        Weight (out, in, *kernel).
    """
    last = weight.is_contiguous(memory_format=torch.channels_last) if weight.ndim == 4 else False
    own = weight if last or weight.is_contiguous() else weight.contiguous()
    up, down = up.contiguous(), down.contiguous()
    form = torch.channels_last if channels_last and weight.ndim == 4 else torch.contiguous_format
    made = torch.empty(weight.shape, dtype=dtype, device=weight.device, memory_format=form)
    rows, channels = weight.shape[:2]
    columns = weight[0].numel()
    grid = (triton.cdiv(columns, _COLUMNS), triton.cdiv(rows, _ROWS))
    kernel: Any = _weight
    with torch.cuda.device_of(weight):
        kernel[grid](
            own,
            up,
            down,
            up if scale is None else scale.to(up.dtype).contiguous(),
            made,
            rows,
            columns,
            channels,
            up.shape[1],
            scaled=scale is not None,
            own_last=last and not weight.is_contiguous(),
            made_last=form is torch.channels_last,
            wide=up.dtype is torch.float64,
            block_rows=_ROWS,
            block_columns=_COLUMNS,
        )
    return made


@triton.jit
def _weight(
    own,
    up,
    down,
    scale,
    made,
    rows,
    columns,
    channels,
    rank,
    scaled: tl.constexpr,
    own_last: tl.constexpr,
    made_last: tl.constexpr,
    wide: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
):
    row = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    column = tl.program_id(0) * block_columns + tl.arange(0, block_columns)  # as the result lies in memory
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    positions = columns // channels
    place = column  # channel after channel, as `down` has it
    if made_last:
        place = (column % channels) * positions + column // channels
    source = place
    if own_last:
        source = (place % positions) * channels + place // positions
    total = tl.load(own + row[:, None] * columns + source[None, :], mask=inside, other=0.0)
    total = total.to(tl.float64 if wide else tl.float32)
    for each in range(rank):
        left = tl.load(up + row * rank + each, mask=row < rows, other=0.0).to(total.dtype)
        right = tl.load(down + each * columns + place, mask=column < columns, other=0.0).to(total.dtype)
        total += left[:, None] * right[None, :]
    if scaled:
        total = total * tl.load(scale + row, mask=row < rows, other=0.0)[:, None]
    tl.store(made + row[:, None] * columns + column[None, :], total.to(made.dtype.element_ty), mask=inside)


def try_out(device: torch.device) -> str:
    """Compute a small weight and norm both ways; what differs, or nothing."""
    generator = torch.Generator().manual_seed(0)
    own, up, down, scale = (
        torch.randn(shape, generator=generator).to(device) for shape in ((20, 17, 3, 3), (20, 3), (3, 153), (20,))
    )
    expected = scale.view(-1, 1, 1, 1) * (own.double() + (up.double() @ down.double()).view_as(own))
    for last in (False, True):
        made = weight_of(own, up, down, scale, torch.float32, channels_last=last)
        if not torch.allclose(made.double(), expected, rtol=_CLOSE, atol=_CLOSE):
            return "a weight is wrong"
    mean, variance, weight, bias = up[:, 0], scale.square(), up[:, 1], up[:, 2]
    found = affine_of(mean.contiguous(), variance, weight.contiguous(), bias.contiguous(), 1e-5)
    factor = weight.double() / (variance.double() + 1e-5).sqrt()
    wanted = (factor, bias.double() - factor * mean.double())
    right = all(
        torch.allclose(one.double(), two, rtol=_CLOSE, atol=_CLOSE) for one, two in zip(found, wanted, strict=True)
    )
    return "" if right else "a norm is wrong"


def affine_of(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Scale and shift (channels) of a norm by running statistics, found in float64, each float32 at least.

    Args:
        mean: Running mean (channels).
        variance: Running variance (channels).
        weight: (channels) or None for one.
        bias: (channels) or None for zero.
        eps: Added to the variance.
    """
    dtype = torch.promote_types(mean.dtype, torch.float32)
    made = torch.empty(2, mean.numel(), dtype=dtype, device=mean.device)
    kernel: Any = _affine
    with torch.cuda.device_of(mean):
        kernel[(triton.cdiv(mean.numel(), _COLUMNS),)](
            mean,
            variance,
            mean if weight is None else weight,
            mean if bias is None else bias,
            made,
            eps,
            mean.numel(),
            weighted=weight is not None,
            shifted=bias is not None,
            block=_COLUMNS,
        )
    return made[0], made[1]


@triton.jit
def _affine(
    mean,
    variance,
    weight,
    bias,
    made,
    eps,
    channels,
    weighted: tl.constexpr,
    shifted: tl.constexpr,
    block: tl.constexpr,
):
    channel = tl.program_id(0) * block + tl.arange(0, block)
    inside = channel < channels
    scale = 1 / tl.sqrt(tl.load(variance + channel, mask=inside, other=1.0).to(tl.float64) + eps)
    if weighted:
        scale = scale * tl.load(weight + channel, mask=inside, other=0.0).to(tl.float64)
    shift = -scale * tl.load(mean + channel, mask=inside, other=0.0).to(tl.float64)
    if shifted:
        shift = shift + tl.load(bias + channel, mask=inside, other=0.0).to(tl.float64)
    tl.store(made + channel, scale.to(made.dtype.element_ty), mask=inside)
    tl.store(made + channels + channel, shift.to(made.dtype.element_ty), mask=inside)
