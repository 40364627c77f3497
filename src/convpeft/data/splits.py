"""Cut what a source offers into train, val and test: stratified, by group, seeded, and said out loud."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from convpeft.data.datasets import Dataset, Parts, Split
from convpeft.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Each kind of draw has its own stream, so that one more draw never changes another.
_STREAMS = {"test": 1, "val": 2, "limit": 3, "fraction": 4, "per_class": 5, "val_per_class": 6}


def complete(
    spec: str,
    parts: Parts,
    *,
    seed: int,
    val_fraction: float,
    test_fraction: float,
    limit: int | None,
    fraction: float | None = None,
    per_class: int | None = None,
    val_per_class: int | None = None,
) -> Dataset:
    """Make the missing splits out of train, and cut train and validation to the part that is asked for.

    A given test split is never touched. A missing test split is cut out of train first, then a missing
    validation split out of what is left.

    Raises:
        DataError: If a split stays empty, or a class can be met but was never learned.
    """
    splits = {name: split for name, split in parts.splits.items() if len(split)}
    notes = list(parts.notes)
    if "train" not in splits:
        raise DataError(f"data '{spec}': has no training images. Put them below train/CLASS/ or CLASS/.")
    if len(parts.classes) < 2:
        raise DataError(
            f"data '{spec}': has one class ({', '.join(parts.classes)}), expected two or more. Add another class."
        )
    made = tuple(name for name in ("test", "val") if name not in splits)
    for name, share in (("test", test_fraction), ("val", val_fraction)):
        if name in made:
            splits["train"], splits[name] = _cut(spec, splits["train"], name, share, seed, notes)
    dataset = Dataset(spec, parts.classes, splits["train"], splits["val"], splits["test"])
    notes += _check_classes(dataset) + _check_groups(dataset)
    train = _part(dataset.train, seed=seed, limit=limit, fraction=fraction, per_class=per_class)
    if len(train) < len(dataset.train):
        how = f"{per_class} a class" if per_class is not None else "stratified by class"
        if fraction is not None and train.groups is not None:
            how = f"{len(set(train.groups)):,} whole groups, {how}"
        notes.append(f"train: {len(train):,} of {len(dataset.train):,} images, {how}, seed {seed}")
        missing = len(set(dataset.train.labels.tolist())) - len(set(train.labels.tolist()))
        if missing:
            notes.append(f"train: this part leaves {missing} of {len(parts.classes)} classes without an image")
    val = dataset.val
    if val_per_class is not None:
        val = val.subset(choose_per_class(val.labels, val_per_class, seed=seed, stream="val_per_class"))
    if len(val) < len(dataset.val):
        notes.append(f"val: {len(val):,} of {len(dataset.val):,} images, {val_per_class} a class, seed {seed}")
    return Dataset(spec, parts.classes, train, val, dataset.test, tuple(notes), made)


def as_found(spec: str, parts: Parts) -> Dataset:
    """Take what a source offers as it is; the splits that it does not have are empty.

    Raises:
        DataError: If there is no image.
    """
    some = next((split for split in parts.splits.values() if len(split)), None)
    if some is None:
        raise DataError(f"data '{spec}': has no images. Put them below CLASS/ or test/CLASS/.")
    empty = some.subset(np.zeros(0, dtype=np.int64))
    train, val, test = (parts.splits.get(name, empty) for name in ("train", "val", "test"))
    return Dataset(spec, parts.classes, train, val, test, parts.notes)


def hold_out(
    labels: NDArray[np.int64], fraction: float, *, rng: np.random.Generator, groups: tuple[str, ...] | None = None
) -> NDArray[np.bool_]:
    """Choose the images to hold out: the same share of every class, whole groups where there are groups.

    A class keeps at least one image; one with two or more gives at least one (without groups).

    Args:
        labels: int64 (count,).
        fraction: Share to hold out, in (0, 1).
        rng: Where the choice comes from.
        groups: A group name for each image.

    Returns:
        bool (count,), True for what is held out.
    """
    if groups is not None:
        return _hold_out_groups(labels, fraction, rng, groups)
    held = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        share = round(fraction * len(members))
        held[members[: min(max(share, 1), len(members) - 1)]] = True
    return held


def choose(labels: NDArray[np.int64], limit: int, *, seed: int) -> NDArray[np.int64]:
    """Choose `limit` images, in proportion to the classes and one of each class first.

    The choice is nested: with one seed, a smaller limit is always a part of a larger one.

    Returns:
        Positions, int64 (limit,), ascending.
    """
    rng = np.random.default_rng([seed, _STREAMS["limit"]])
    order = np.empty(len(labels), dtype=np.float64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        order[members] = (np.arange(len(members)) + rng.random()) / len(members)
        order[members[0]] -= 1
    chosen = np.argsort(order, kind="stable")[:limit]
    return np.sort(chosen).astype(np.int64)


def choose_per_class(
    labels: NDArray[np.int64], count: int, *, seed: int, stream: str = "per_class"
) -> NDArray[np.int64]:
    """Choose `count` images of each class, all of a class that has fewer.

    The choice is nested: with one seed, a smaller count is always a part of a larger one.

    Returns:
        Positions, int64, ascending.
    """
    rng = np.random.default_rng([seed, _STREAMS[stream]])
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _part(train: Split, *, seed: int, limit: int | None, fraction: float | None, per_class: int | None) -> Split:
    """What is asked for of the training split; with a fraction, groups stay whole."""
    if limit is not None and limit < len(train):
        return train.subset(choose(train.labels, limit, seed=seed))
    if per_class is not None:
        return train.subset(choose_per_class(train.labels, per_class, seed=seed))
    if fraction is None or fraction >= 1:
        return train
    if train.groups is None:
        return train.subset(choose(train.labels, max(1, round(fraction * len(train))), seed=seed))
    rng = np.random.default_rng([seed, _STREAMS["fraction"]])
    taken = hold_out(train.labels, fraction, rng=rng, groups=train.groups)
    return train.subset(np.flatnonzero(taken)) if taken.any() else train


def _hold_out_groups(
    labels: NDArray[np.int64], fraction: float, rng: np.random.Generator, groups: tuple[str, ...]
) -> NDArray[np.bool_]:
    """Take groups in random order while they bring every class nearer to its share."""
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    classes, class_of = np.unique(labels, return_inverse=True)
    table = np.zeros((len(names), len(classes)))
    np.add.at(table, (group_of, class_of), 1)
    total = table.sum(0)
    share, taken = np.zeros(len(classes)), np.zeros(len(names), dtype=np.bool_)
    # Large groups first: small ones then fill what is missing.
    order = rng.permutation(len(names))
    for group in order[np.argsort(-table[order].sum(1), kind="stable")]:
        after = share + table[group]
        nearer = np.sum(np.abs(after / total - fraction)) < np.sum(np.abs(share / total - fraction))
        if nearer and np.all(after < total):
            share, taken[group] = after, True
    if not taken.any():
        # Every group is more than the share asked for: one, the smallest that leaves each class an image.
        possible = [group for group in order if np.all(table[group] < total)]
        if possible:
            taken[min(possible, key=lambda group: table[group].sum())] = True
    return taken[group_of]


def _cut(spec: str, train: Split, name: str, fraction: float, seed: int, notes: list[str]) -> tuple[Split, Split]:
    rng = np.random.default_rng([seed, _STREAMS[name]])
    held = hold_out(train.labels, fraction, rng=rng, groups=train.groups)
    if not held.any():
        unit = "groups" if train.groups else "images"
        raise DataError(
            f"data '{spec}': too few {unit} to make a {name} split out of {len(train)} training images. "
            f"Add images or give a {name} split."
        )
    kept, cut = train.subset(np.flatnonzero(~held)), train.subset(np.flatnonzero(held))
    by_group = f", {len(set(cut.groups or ())):,} whole groups" if train.groups else ""
    notes.append(
        f"{name}: none was given, so {len(cut):,} of {len(train):,} training images{by_group}, "
        f"stratified by class, seed {seed}"
    )
    return kept, cut


def _check_classes(dataset: Dataset) -> list[str]:
    known = dataset.train.class_counts(len(dataset.classes)) > 0
    seen = known.copy()
    for name in ("val", "test"):
        present = dataset.splits()[name].class_counts(len(dataset.classes)) > 0
        unlearned = [dataset.classes[i] for i in np.flatnonzero(present & ~known)]
        if unlearned:
            raise DataError(
                f"data '{dataset.spec}': the {name} split has {_listed(unlearned)}, of which train has no image. "
                f"Add training images or remove them from {name}."
            )
        seen |= present
    absent = [dataset.classes[i] for i in np.flatnonzero(~seen)]
    return [f"{_listed(absent)}: no images in any split"] if absent else []


def _check_groups(dataset: Dataset) -> list[str]:
    notes: list[str] = []
    train = set(dataset.train.groups or ())
    for name in ("val", "test"):
        shared = train & set(dataset.splits()[name].groups or ())
        if shared:
            notes.append(f"{name}: as given, shares {len(shared):,} groups with train, so its results are optimistic")
    return notes


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{'class' if len(names) == 1 else 'classes'} {shown}{more}"
