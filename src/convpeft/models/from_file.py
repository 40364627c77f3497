"""From an adapter file alone to a working model: the base it records, with the adapter on it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from convpeft.adapter_file import read_adapter
from convpeft.errors import AdapterFileError
from convpeft.models.loading import rebuild
from convpeft.models.preprocessing import Preprocessing
from convpeft.models.source import ModelSource
from convpeft.storage import load


def from_adapter(path: str | Path, *, weights: str | Path | None = None, force: bool = False) -> nn.Module:
    """Build the base that an adapter file records and load the adapter on it.

    Args:
        path: An adapter, a run, or an adapter on the hub as `hf://user/name@revision`.
        weights: The base's weights file, where it is not at the recorded place.
        force: Load onto a base with another fingerprint all the same, with a warning.

    Returns:
        The adapted model.

    Raises:
        AdapterFileError: If the file is damaged, records no base, or the base that was built is another one.
        ModelError: If the base cannot be built: its weights are missing, or it is a function of somebody's own code.
    """
    file = read_adapter(path)
    if file.config["model"] is None:
        raise AdapterFileError(
            f"{file.path}: records no base. Build it yourself and call convpeft.load(model, {str(file.path)!r})."
        )
    model = rebuild(ModelSource.from_dict(file.config["model"], where=f"{file.path}: model"), weights=weights)
    if file.config["preprocessing"] is not None:
        told = Preprocessing.from_dict(file.config["preprocessing"], where=f"{file.path}: preprocessing")
        model.__dict__["_convpeft_preprocessing"] = told
    return load(model, file.path, force=force)
