"""Features of images on disk: written once in half precision, checked before they are trusted, served as batches.

A folder holds `facts.json` and for each split a file of rows, one a view and image: the float16 numbers of the features
in the order in which they lay in memory. It is written whole or not at all. The facts name everything that the rows
depend on, with digests of the images and of the rows themselves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from convpeft.data import ImageBatches
from convpeft.errors import one_line
from convpeft.fingerprints import tensor_digest
from convpeft.training.splitting import Halves, running
from convpeft.writing import whole_directory

Batch = tuple[Tensor, Tensor, Tensor]
Told = Callable[[int, int], None]  # images done, and of how many

FOLDER = "prefix-cache"  # below a run's directory
BYTES = 2  # a number

_FACTS, _FORMAT = "facts.json", 1
_LEAST_BATCH = 64  # images; a batch that is not trained on needs little memory
_BLOCK = 1 << 24  # bytes read at once
_ROUNDING = 1e-3  # of the size of a batch's features; float16 rounds to a third of that


class CannotKeep(Exception):  # noqa: N818 - never leaves the package
    """Why features cannot be kept in half precision, without a full stop."""


class Unusable(Exception):  # noqa: N818 - never leaves the package
    """What is wrong with features on the disk, to go on after their name."""


@dataclass(frozen=True)
class Wanted:
    """Images of one split, their labels (images), and how many views of each are kept."""

    images: ImageBatches
    labels: Tensor
    views: int

    @property
    def rows(self) -> int:
        """Rows in the file: all images of the first view, then those of the next."""
        return self.views * len(self.labels)

    def view(self, number: int) -> Iterator[Tensor]:
        """All images of one view in order, augmented as those of epoch `number` + 1."""
        self.images.set_epoch(number + 1)
        loader = self.images.loader
        size = max(loader.batch_size or 1, _LEAST_BATCH)
        collate, workers = loader.collate_fn, loader.num_workers
        generator = torch.Generator().manual_seed(0)  # else a loader draws from the global one
        for images, _, _ in DataLoader(
            loader.dataset, batch_size=size, collate_fn=collate, num_workers=workers, generator=generator
        ):
            yield images


@dataclass(frozen=True)
class Maker:
    """What turns images into rows: the first half of a network, on its device."""

    model: nn.Module
    halves: Halves
    device: torch.device
    half: torch.dtype | None  # type of autocast

    def rows(self, images: Tensor) -> Tensor:
        """Features of a batch, float16 (batch, numbers) on the CPU.

        Raises:
            CannotKeep: If they do not fit into float16.
        """
        with running(self.model, self.halves.prefix.forward), self._casting():
            # with gradients on, the layers run as in a training step; nothing here needs one
            values = self.model(images.to(self.device))
        exact = self.halves.pack([value.detach().float() for value in values])
        kept = exact.to(torch.float16)
        if not bool(torch.isfinite(kept).all()):
            raise CannotKeep("features are too large for half precision")
        if float((kept.float() - exact).norm()) > _ROUNDING * float(exact.norm()):
            raise CannotKeep("features are too small for half precision")
        return kept.cpu()

    def digest(self) -> str:
        """Of everything that the features of an image depend on beside the image."""
        prefix = self.halves.prefix
        told = hashlib.sha256(f"{prefix.code}{prefix!r}{self.halves.features}{self.half}".encode())
        for name, tensor in (*prefix.named_parameters(), *prefix.named_buffers()):
            told.update(f"{name}={tensor_digest(tensor)};".encode())
        return told.hexdigest()

    def _casting(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.half is None else torch.autocast(self.device.type, self.half)


def write_features(
    folder: Path, wanted: Mapping[str, Wanted], settings: Mapping[str, Any], maker: Maker, *, told: Told | None
) -> None:
    """Compute the features of some splits and put them into a folder; one that is there is replaced.

    Args:
        folder: Where they go.
        wanted: Images by the name of their split.
        settings: What the features depend on, plain values.
        maker: Turns images into rows.
        told: Is told how many images are done, and of how many.

    Raises:
        CannotKeep: If they do not fit into float16.
        OSError: If they cannot be written.
    """
    drop_features(folder)  # its room may be needed
    done, total = 0, sum(each.rows for each in wanted.values())
    facts: dict[str, Any] = {"format": _FORMAT, "settings": dict(settings), "splits": {}}
    flags = {module: module.training for module in maker.model.modules()}
    maker.model.train()
    try:
        with whole_directory(folder) as work:
            for name, each in wanted.items():
                images, rows = hashlib.sha256(), hashlib.sha256()
                with (work / f"{name}.f16").open("wb") as stream:
                    for view in range(each.views):
                        for batch in each.view(view):
                            content = maker.rows(batch).numpy().tobytes()
                            stream.write(content)
                            rows.update(content)
                            if view == 0:  # the others are functions of the same images and of the settings
                                images.update(batch.numpy().tobytes())
                            done += len(batch)
                            if told is not None:
                                told(done, total)
                facts["splits"][name] = {"rows": each.rows, "images": images.hexdigest(), "digest": rows.hexdigest()}
            (work / _FACTS).write_text(json.dumps(facts | {"digest": _digest(facts)}), encoding="utf-8")
    finally:
        for module, flag in flags.items():
            module.training = flag


def read_features(
    folder: Path, wanted: Mapping[str, Wanted], settings: Mapping[str, Any], *, told: Told | None
) -> dict[str, Tensor]:
    """Features that a run before has left, after a look at every byte of them and of the images.

    Returns:
        Rows float16 (rows, numbers) of each split, mapped from the disk.

    Raises:
        Unusable: If they are missing, damaged, or not those of these images and settings.
    """
    facts = _read_facts(folder)
    theirs, splits = facts.get("settings"), facts.get("splits")
    if facts.get("format") != _FORMAT or not isinstance(theirs, dict) or not isinstance(splits, dict):
        raise Unusable("is stale (it has another format)")
    before, known = cast(dict[str, Any], theirs), cast(dict[str, Any], splits)
    other = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
    if other or known.keys() != wanted.keys():
        raise Unusable(f"is stale (other {one_line(', '.join(other or ['splits']), 80)})")
    done, total = 0, sum(len(each.labels) for each in wanted.values())
    found: dict[str, Tensor] = {}
    for name, each in wanted.items():
        images = hashlib.sha256()
        for batch in each.view(0):
            images.update(batch.numpy().tobytes())
            done += len(batch)
            if told is not None:
                told(done, total)
        of = cast(dict[str, Any], known[name]) if isinstance(known[name], dict) else {}
        if (of.get("rows"), of.get("images")) != (each.rows, images.hexdigest()):
            raise Unusable("is stale (other images)")
        file = folder / f"{name}.f16"
        found[name] = _map_rows(file, each.rows, settings["numbers"])
        if _digest_of_file(file) != of.get("digest"):
            raise Unusable("is damaged (its features)")
    return found


def map_features(folder: Path, wanted: Mapping[str, Wanted], numbers: int) -> dict[str, Tensor]:
    """Rows that have just been written."""
    return {name: _map_rows(folder / f"{name}.f16", each.rows, numbers) for name, each in wanted.items()}


def has_facts(folder: Path) -> bool:
    """Whether a run was trained from features, which may be gone."""
    return (folder / _FACTS).is_file()


def drop_features(folder: Path) -> None:
    """Give the room of the features back; the facts about them stay."""
    for file in folder.glob("*.f16"):
        with suppress(OSError):
            file.unlink()


class FeatureBatches:
    """Features in place of images: the same order in each epoch, the same labels and indices.

    Args:
        of: The images; epoch e takes view (e - 1) % views.
        rows: float16 (views * images, numbers).
        halves: The network in two; it knows how a row becomes a feature.
        shaped: Serve features in their own shape, so that their layout may be changed.
    """

    def __init__(self, of: Wanted, rows: Tensor, halves: Halves, *, shaped: bool = False) -> None:
        self._of = of
        self.dataset = _Rows(rows, of.labels, halves, shaped=shaped)
        theirs = of.images.loader
        self.loader: DataLoader[Batch] = DataLoader(
            self.dataset,
            batch_size=theirs.batch_size,
            sampler=of.images.sampler,
            collate_fn=theirs.collate_fn,
            drop_last=theirs.drop_last,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(0),
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the view of the next iteration."""
        self._of.images.set_epoch(epoch)
        self.dataset.view = (epoch - 1) % self._of.views


class _Rows(TorchDataset[Batch]):
    def __init__(self, rows: Tensor, labels: Tensor, halves: Halves, *, shaped: bool) -> None:
        self.view = 0
        self._rows, self._labels, self._halves, self._shaped = rows, labels, halves, shaped

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Batch:
        features, labels, indices = self.__getitems__([index])
        return features[0], labels[0], indices[0]

    def __getitems__(self, indices: list[int]) -> Batch:
        index = torch.tensor(indices, dtype=torch.int64)
        rows = self._rows.index_select(0, index + self.view * len(self))
        return self._halves.serve(rows, shaped=self._shaped), self._labels.index_select(0, index), index


def _read_facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        if facts.pop("digest") != _digest(facts):
            raise Unusable("is damaged (its description)")
    except OSError:
        raise Unusable("is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Unusable("is damaged (its description)") from None
    return facts


def _map_rows(file: Path, rows: int, numbers: int) -> Tensor:
    try:
        if file.stat().st_size != rows * numbers * BYTES:
            raise Unusable("is damaged (its size)")
        # copy on write: torch wants memory that may be written to, and the file is never
        mapped = np.memmap(file, dtype=np.float16, mode="c", shape=(rows, numbers))
    except OSError:
        raise Unusable("is missing") from None
    return torch.from_numpy(mapped)


def _digest_of_file(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
