"""The images of the experiment: which of them train, choose, judge, and which tell what is left of the source."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from plan import Transfer

from convpeft.comparing.digests import data_digests
from convpeft.data import Dataset, Split, load_data
from convpeft.data.datasets import FileImages

_STREAM = 6  # so that the draws share no number with others of the seed
_VAL_SHARE = 0.05  # where the target has no validation split of its own
_IMAGENET = "imagenet_sample1000_224"


@functools.lru_cache(maxsize=8)
def target_data(transfer: Transfer, root: str, seed: int) -> Dataset:
    """The target's images for a seed: pool, validation and test, each at most as large as the transfer says."""
    fold = 0 if transfer.folds else None  # one for all seeds: a rate is chosen on no image that is tested
    whole = load_data(transfer.target.format(root=root), seed=seed, val_fraction=_VAL_SHARE, fold=fold)
    return Dataset(
        spec=whole.spec,
        classes=whole.classes,
        train=draw(whole.train, transfer.pool, seed),
        val=draw(whole.val, transfer.val, seed),
        test=draw(whole.test, transfer.test, 0),
    )


@functools.lru_cache(maxsize=4)
def source_data(transfer: Transfer, root: str) -> tuple[Split, Split | None]:
    """Test images of the source, and those that a new classifier is fitted on where there are any."""
    if transfer.source == "imagenet":
        files = sorted((Path(root) / _IMAGENET).glob("*.jpg"))
        if not files:
            raise SystemExit(f"{Path(root) / _IMAGENET}: holds no .jpg. Put one image a class there, sorted by class.")
        whole = Split(FileImages(tuple(files)), np.arange(len(files)), tuple(file.name for file in files))
        return draw(whole, transfer.source_test, 0), None
    found = load_data(transfer.source.format(root=root))
    fit = draw(found.train, transfer.source_fit, 0) if transfer.source_fit else None
    return draw(found.test, transfer.source_test, 0), fit


def draw(split: Split, count: int, seed: int) -> Split:
    """So many images, in proportion to the classes; fewer are always part of more."""
    if count >= len(split):
        return split
    rng = np.random.default_rng([seed, _STREAM])
    place = np.empty(len(split))
    for label in np.unique(split.labels):
        members = rng.permutation(np.flatnonzero(split.labels == label))
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return split.subset(np.sort(np.argsort(place, kind="stable")[:count]))


def digests(transfer: Transfer, root: str) -> dict[str, str]:
    """SHA-256 of what seed 0 trains on, chooses on and judges on, and of the source's images."""
    target = target_data(transfer, root, 0)
    test, fit = source_data(transfer, root)
    source = Dataset("", target.classes, fit or test, test, test)
    found = {f"target {name}": digest for name, digest in data_digests(target).items()}
    told = data_digests(source)
    return found | {"source test": told["test"]} | ({"source fit": told["train"]} if fit is not None else {})
