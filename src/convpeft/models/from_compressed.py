"""Build a compressed network from its file, on the base that the file names or on one that is given."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from convpeft.models.compressed import read_compressed
from convpeft.models.loading import load_model
from convpeft.models.weights import load_strictly


def load_compressed(path: str | Path, *, base: nn.Module | None = None) -> nn.Module:
    """Build a compressed network from its file.

    Args:
        path: What `save_compressed` or `convpeft compress` wrote.
        base: The network that was compressed, its weights of no matter; it is changed in place. Default: the one that
            the file names, if that is not a Python function of somebody's own.

    Returns:
        The network, in training mode as any that is built.

    Raises:
        AdapterFileError: If the file is damaged.
        ModelError: If the base is another network, or the file names none.
    """
    if base is None:
        return load_model("compressed", weights=path)
    file = read_compressed(path)
    model = file.thinned(base)
    load_strictly(model, file.tensors, file=str(path))
    model.__dict__.pop("_convpeft_source", None)  # an adapter on it must not record the base that was compressed
    return model
