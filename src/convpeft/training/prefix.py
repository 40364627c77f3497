"""The prefix cache: what comes before the first trained layer is computed once for each image, and trained from.

When `auto` takes it. A step of training costs about F + 2 (F - P) multiplications, F those of a forward pass, P those
of the frozen prefix, which has no backward pass; the cache saves P of them in every epoch but those that fill it. So it
is taken where P is at least a quarter of F, which saves a tenth of the time or more; where each view is used twice or
more; where the images are the same in every epoch, or a number of views was chosen; and where half of the free disk
is enough.

What it changes. Features are rounded to half precision (11 bits), once, so that losses differ in the fourth digit from
those of a training from images. Validation, which chooses the best epoch, is measured from features too: from images it
would cost more than the epoch. The figures of the test split come from the whole network and the images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from convpeft.data import ImageBatches
from convpeft.errors import ModelError, OptionError, RunError
from convpeft.training.checkpoints import Checkpoint, read_checkpoint
from convpeft.training.features import BYTES, FOLDER, has_facts
from convpeft.training.history import Epoch, is_out_of_patience
from convpeft.training.processes import count_processes
from convpeft.training.recipe import Recipe, TrainSection
from convpeft.training.room import room_beside
from convpeft.training.splitting import CannotSplit, Halves, share_before_training, split_network
from convpeft.writing import try_room

_WORTH = 0.25  # least share of a forward pass
_TRIED = 4  # images that the halves are tried on
HALF = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # type of autocast


@dataclass(frozen=True)
class Prefix:
    """What is computed once: the halves of the network, views of each image, and what is said of it."""

    halves: Halves
    views: int
    note: str


def check_prefix(recipe: Recipe) -> None:
    """Refuse what a recipe cannot mean, before anything is read.

    Raises:
        OptionError: If views are asked for where there are none, or the cache where it cannot be.
    """
    settings, augment = recipe.train, recipe.data.augment
    if settings.prefix_views > 1 and augment == "none":
        raise OptionError(
            f"train.prefix_views={settings.prefix_views}: without augmentation an image has one view. "
            "Set data.augment, or leave train.prefix_views out."
        )
    if settings.prefix_cache != "on":
        return
    if settings.objective == "lwf":
        raise OptionError("train.prefix_cache='on': train.objective='lwf' needs the images. Leave one of them out.")
    if settings.checkpointing:
        raise OptionError(
            "train.prefix_cache='on': train.checkpointing works on whole blocks of the network. Leave one of them out."
        )
    if augment != "none" and settings.prefix_views == 1:
        raise OptionError(
            f"train.prefix_cache='on': data.augment={augment!r} makes new images in each epoch. "
            "Set train.prefix_views to the number of views to keep, or data.augment='none'."
        )
    if count_processes() > 1:
        raise OptionError("train.prefix_cache='on' runs in one process. Start it without torchrun.")


def choose_prefix(
    recipe: Recipe, model: nn.Module, batches: Mapping[str, ImageBatches], out: Path, last: Path, *, resume: bool
) -> tuple[Prefix | None, list[str]]:
    """Decide whether a run trains from features, and say so.

    A run that goes on does as it did before, where it can.

    Args:
        recipe: The run's recipe.
        model: The model with its adapter; it is left as it was.
        batches: Batches by split.
        out: The run's directory; it exists.
        last: Its newest checkpoint's directory.
        resume: Whether the run goes on.

    Raises:
        ModelError: If the recipe demands it and the network has no such prefix.
        RunError: If the recipe demands it and there is no room.
    """
    settings = recipe.train
    demanded = settings.prefix_cache == "on"
    found = read_checkpoint(last) if resume else None
    begun, over = found is not None, found is not None and is_over(found, settings)
    before = begun and has_facts(out / FOLDER)
    try:
        if not demanded and not _may_pay(recipe, model, batches["train"]):
            return None, []
        halves = split_network(model, _images(batches["train"]), half=HALF[settings.precision])
        if not demanded and halves.share < _WORTH:
            raise CannotSplit(f"only {halves.share:.0%} of the network comes before what is trained or random")
    except CannotSplit as error:
        if demanded:
            raise ModelError(f"train.prefix_cache='on': {error}. Set it to 'off'.") from None
        return None, [f"the prefix cache is not used: {error}."]
    if begun and not before and not demanded:
        return None, ["the run was begun without the prefix cache, or that was removed: it goes on from the images."]
    views, splits = settings.prefix_views, ("train", "val") if halves.evaluates else ("train",)
    rows = {"train": views * len(batches["train"].dataset), "val": len(batches["val"].dataset)}
    size = sum(rows[name] for name in splits) * halves.numbers * BYTES
    trouble = None if over else _find_room(out, model, settings, size, careful=not demanded and not before)
    if trouble is not None and demanded:
        raise RunError(f"{out}: {trouble}. Free space, choose another --out, or set train.prefix_cache='off'.")
    if trouble is not None:
        return None, [f"the prefix cache is not used: {trouble}."]
    of_views = f" and each of {views} views" if views > 1 else ""
    note = (
        f"trains from cached features: {halves.share:.0%} of the network, up to {halves.place}, is computed once for "
        f"each image{of_views} and kept in half precision, {size / 1e6:,.1f} MB in {out / FOLDER} until the run is "
        f"finished{'' if halves.evaluates else '; validation runs on the images'}. The test runs on the images."
    )
    return Prefix(halves, views, note), [note]


def is_over(found: Checkpoint, settings: TrainSection) -> bool:
    """Whether a run that goes on from a checkpoint has no epoch left: then nothing is worth computing."""
    try:
        history = [Epoch(**row) for row in found.facts["history"]]
    except (KeyError, TypeError):
        return False  # whoever puts the state back says so
    return len(history) >= settings.epochs or is_out_of_patience(history, settings.patience)


def _may_pay(recipe: Recipe, model: nn.Module, images: ImageBatches) -> bool:
    """Whether `auto` looks closer, which needs a trace of the network."""
    settings = recipe.train
    fixed = recipe.data.augment == "none" or settings.prefix_views > 1
    if settings.prefix_cache == "off" or settings.objective == "lwf" or settings.checkpointing or not fixed:
        return False
    if count_processes() > 1 or settings.epochs < 2 * settings.prefix_views:
        return False
    return share_before_training(model, _images(images)[:1]) >= _WORTH


def _images(batches: ImageBatches) -> Tensor:
    count = min(_TRIED, len(batches.dataset))
    return batches.dataset.__getitems__(list(range(count)))[0]


def _find_room(out: Path, model: nn.Module, settings: TrainSection, size: int, *, careful: bool) -> str | None:
    """Why features of so many bytes find no room, without a full stop; where it is careful, half is left free."""
    there = sum(file.stat().st_size for file in (out / FOLDER).glob("*.f16"))
    free = room_beside(out, model, settings) + there
    needs = f"the cached features need {size / 1e6:,.1f} MB"
    if size > free:
        return f"{needs} and {max(free, 0) / 1e6:,.1f} MB are free beside the run's other files"
    if careful and 2 * size > free:
        return f"{needs}, more than half of the {free / 1e6:,.1f} MB that are free (train.prefix_cache='on' takes them)"
    try:
        try_room(out, [max(0, size - there)])
    except OSError as error:
        return f"{needs} and the system refuses as much ({error.strerror})"
    return None
