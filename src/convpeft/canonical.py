"""A layer's weight in the one form that every method sees, and back."""

from __future__ import annotations

from torch import Tensor

from convpeft.sites import Site


def to_canonical(weight: Tensor, site: Site) -> Tensor:
    """A layer's weight as `(out, in/groups, *kernel)`; a view unless the convolution is transposed."""
    if not site.transposed:
        return weight
    split = weight.unflatten(0, (site.groups, -1))  # (groups, in/groups, out/groups, *kernel)
    return split.transpose(1, 2).flatten(0, 1)


def from_canonical(weight: Tensor, site: Site) -> Tensor:
    """Inverse of `to_canonical`."""
    if not site.transposed:
        return weight
    split = weight.unflatten(0, (site.groups, -1))  # (groups, out/groups, in/groups, *kernel)
    return split.transpose(1, 2).flatten(0, 1)
