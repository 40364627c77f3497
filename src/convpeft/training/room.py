"""Whether a run's directory has room for all that the run will write, found out before anything is trained."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from convpeft.counting import trainable_parameters
from convpeft.errors import RunError
from convpeft.training.checkpoints import adapter_tensors
from convpeft.training.features import FOLDER
from convpeft.training.recipe import TrainSection
from convpeft.writing import try_room

_KEPT = 3  # checkpoints at once: the newest, the one before, and the one being written
_MOMENTS = {"adamw": 2, "sgd": 1}  # numbers that an optimiser keeps for each that it trains
_A_TENSOR = 512  # bytes of a tensor's name, shape and place in a file, more than any takes
_AN_EPOCH = 512  # bytes of an epoch in the history
_REST_FILES, _REST_FILE = 16, 1 << 20  # number, bytes each: random states, figures, plots and report
_OF_THE_FILE_SYSTEM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def check_room(out: Path, model: nn.Module, settings: TrainSection) -> None:
    """Compare what a run is going to write with what is free, then try to set that much room aside.

    What an earlier part of the same run has left there counts as room.

    Args:
        out: The run's directory; it exists.
        model: The model with its adapter.
        settings: How it is trained.

    Raises:
        RunError: If there is too little room, naming both sizes.
        OSError: If the directory cannot be written for another reason.
    """
    sizes = _still_to_write(out, model, settings)
    needed = sum(sizes)
    free = shutil.disk_usage(out).free
    task = f"{out}: the run needs {_megabytes(needed)} for checkpoints, adapter and report, and"
    remedy = "Free space or choose another --out."
    if needed > free:
        raise RunError(f"{task} {_megabytes(free)} are free. {remedy}")
    try:
        try_room(out, sizes)
    except OSError as error:
        if error.errno not in _OF_THE_FILE_SYSTEM:
            raise
        raise RunError(f"{task} the system refuses as much ({error.strerror}). {remedy}") from None


def room_beside(out: Path, model: nn.Module, settings: TrainSection) -> int:
    """Bytes that are free beyond what the run is going to write; negative where even that finds no room."""
    return shutil.disk_usage(out).free - sum(_still_to_write(out, model, settings))


def expected_sizes(model: nn.Module, settings: TrainSection) -> list[int]:
    """Upper bounds of the files on the disk at once, in bytes: adapter, checkpoints, and everything else."""
    tensors = adapter_tensors(model).values()
    adapter = sum(each.numel() * each.element_size() for each in tensors) + len(tensors) * _A_TENSOR
    trained = trainable_parameters(model)
    copies = _MOMENTS[settings.optimizer] + (settings.accumulate > 1)  # the latter: a step's gradient so far
    state = copies * sum(each.numel() * each.element_size() + _A_TENSOR for each in trained)
    checkpoint = 2 * adapter + state + settings.epochs * _AN_EPOCH  # the last and the best adapter
    return [adapter, *[checkpoint] * _KEPT, *[_REST_FILE] * _REST_FILES]


def _still_to_write(out: Path, model: nn.Module, settings: TrainSection) -> list[int]:
    """Sizes of the files that are not there yet; cached features go at the end, and give no room before."""
    files = [file for file in out.rglob("*") if file.is_file() and file.parent != out / FOLDER]
    return _beyond(sum(file.stat().st_size for file in files), expected_sizes(model, settings))


def _beyond(there: int, sizes: Sequence[int]) -> list[int]:
    """What is left of the sizes where an earlier part of the run has written; one new checkpoint it is in any case."""
    left = list(sizes)
    for index in range(_KEPT):  # the adapter, and all checkpoints but one
        left[index] -= min(there, left[index])
        there -= sizes[index] - left[index]
    return left


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
