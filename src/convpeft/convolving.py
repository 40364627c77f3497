"""A convolution that moves over its input as the layer of a site does, with another weight."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from convpeft.sites import Site

_PLAIN: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def convolve(site: Site, given: Tensor, weight: Tensor, *, groups: int) -> Tensor:
    """Convolve with the stride, dilation, padding and padding mode of the site's layer, without a bias.

    Args:
        site: Site of a convolution, plain or transposed, of one to three axes.
        given: Input (batch, in, *space).
        weight: (out, in/groups, *kernel) with the layer's own kernel size, for a transposed convolution too.
        groups: Groups of this convolution, whatever those of the layer are.

    Returns:
        Output (batch, out, *space), its space that of the layer's own output.
    """
    dims = len(site.kernel)
    if site.transposed:
        turned = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)  # (in, out/groups, *kernel)
        return _TRANSPOSED[dims](
            given, turned, None, site.stride, site.padding, site.output_padding, groups, site.dilation
        )
    if site.padding_mode == "zeros":
        return _PLAIN[dims](given, weight, None, site.stride, site.padding, site.dilation, groups)
    padded = F.pad(given, both_sides(site), mode=site.padding_mode)
    return _PLAIN[dims](padded, weight, None, site.stride, 0, site.dilation, groups)


def both_sides(site: Site) -> list[int]:
    """Padding before and after each axis, the last axis first, as `F.pad` takes it."""
    sides: list[int] = []
    for axis in reversed(range(len(site.kernel))):
        if site.padding == "valid":
            before = after = 0
        elif isinstance(site.padding, str):
            total = site.dilation[axis] * (site.kernel[axis] - 1)
            before, after = total // 2, total - total // 2
        else:
            before = after = site.padding[axis]
        sides += [before, after]
    return sides
