"""Serve a split as normalised float batches in an order that depends on seed and epoch only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from convpeft.data.augmentation import augment as augment_images
from convpeft.data.augmentation import build_transform
from convpeft.data.datasets import ArrayImages, Split
from convpeft.data.images import ImageError, broken_pictures
from convpeft.data.preparing import convert_channels, fits, prepare
from convpeft.errors import OptionError

if TYPE_CHECKING:
    from convpeft.models.preprocessing import Preprocessing

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

CACHE_BYTES = 1 << 30  # of prepared images, over all splits of a run
_CHUNK = 4096
_MAX_THREADS = 8


class ImageBatches:
    """Iterate over a split: images float32 (batch, channels, height, width), labels and indices int64 (batch,).

    The same seed, epoch and index give the same bits, whatever the number of workers; torch's global random
    state is neither read nor moved. Prepared images are kept in memory when they fit in `cache_bytes`.

    Args:
        split: What to serve.
        preprocessing: Size, channels, mean and standard deviation the model expects.
        batch_size: Images a batch, at least 1.
        shuffle: Whether the order changes with the epoch.
        augment: A name that `convpeft.data.augmentation.check_augmentation` knows, or None.
        seed: Of the order and the augmentation, at least 0.
        workers: Processes that prepare batches; 0 is best when images are in memory and not augmented.
        drop_last: Leave out a last, smaller batch.
        cache_bytes: Memory for prepared images, one byte a pixel and channel; all or none are kept.

    Raises:
        OptionError: If an option is out of range or unknown.
        DataError: If pictures cannot be read; up to five are named.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        shuffle: bool = False,
        augment: str | None = None,
        seed: int = 0,
        workers: int = 0,
        drop_last: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0), ("workers", workers, 0)):
            if value < least:
                raise OptionError(f"{name}={value}: expected {least} or more.")
        self._epoch = _Epoch()
        self.dataset = PreparedImages(
            split, preprocessing, augment=augment, seed=seed, epoch=self._epoch, cache_bytes=cache_bytes
        )
        self.sampler = EpochSampler(len(split), shuffle=shuffle, seed=seed, epoch=self._epoch)
        self.loader: DataLoader[Batch] = DataLoader(
            self.dataset,
            batch_size=batch_size,
            sampler=self.sampler,
            num_workers=workers,
            collate_fn=_as_it_is,
            drop_last=drop_last,
            pin_memory=torch.cuda.is_available(),
            # Without a generator of its own a loader draws from the global one at every epoch.
            generator=torch.Generator().manual_seed(seed),
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the next iteration."""
        self._epoch.number = epoch


class _Epoch:
    """The epoch that sampler and data set share.

    Neither has a `set_epoch`: accelerate would call it with a count of its own, which a resumed run starts at 0.
    """

    def __init__(self) -> None:
        self.number = 0


class EpochSampler(Sampler[int]):
    """The order of an epoch: a permutation that is a function of (seed, epoch)."""

    def __init__(self, count: int, *, shuffle: bool, seed: int, epoch: _Epoch) -> None:
        self._count, self._shuffle, self._seed, self._epoch = count, shuffle, seed, epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        if not self._shuffle:
            return iter(range(self._count))
        rng = np.random.default_rng([self._seed, self._epoch.number])
        return iter(rng.permutation(self._count).tolist())


class PreparedImages(TorchDataset[Batch]):
    """Prepared images, whole batches at a time, from memory where they fit."""

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        *,
        augment: str | None,
        seed: int,
        epoch: _Epoch,
        cache_bytes: int,
    ) -> None:
        channels, (height, width) = preprocessing.channels, preprocessing.size
        self._transform = build_transform(augment or "none", (height, width), channels)
        self._split, self._preprocessing, self._seed, self._epoch = split, preprocessing, seed, epoch
        self._labels = torch.tensor(split.labels, dtype=torch.int64)
        mean, std = (
            torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 1) for x in (preprocessing.mean, preprocessing.std)
        )
        # (x / 255 - mean) / std as one multiplication and one addition.
        self._gain, self._offset = 1 / (255 * std), -mean / std
        small = len(split) * channels * height * width <= cache_bytes
        self._cache = prepare_all(split, preprocessing) if small else None

    @property
    def cached_bytes(self) -> int:
        """Memory that the kept images take."""
        return 0 if self._cache is None else self._cache.numel()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Batch:
        images, labels, indices = self.__getitems__([index])
        return images[0], labels[0], indices[0]

    def __getitems__(self, indices: list[int]) -> Batch:
        index = torch.tensor(indices, dtype=torch.int64)
        if self._cache is not None:
            images = self._cache.index_select(0, index)
        else:
            images = torch.stack([prepare(self._split.images[i], self._preprocessing) for i in indices])
        if self._transform is not None:
            keys = [(self._seed, self._epoch.number, i) for i in indices]
            images = augment_images(images, self._transform, keys)
        normalised = images.to(torch.float32).mul_(self._gain).add_(self._offset)
        return normalised, self._labels.index_select(0, index), index


def prepare_all(split: Split, preprocessing: Preprocessing) -> torch.Tensor:
    """Prepare a whole split, uint8 (count, channels, height, width), on several threads.

    Raises:
        DataError: If pictures cannot be read; up to five are named and all are counted.
    """
    prepared = torch.empty((len(split), preprocessing.channels, *preprocessing.size), dtype=torch.uint8)
    images = split.images
    if isinstance(images, ArrayImages) and fits(images.array.shape[1:], preprocessing):
        for start in range(0, len(split), _CHUNK):
            # (chunk, height, width, channels) -> (chunk, channels, height, width)
            chunk = convert_channels(images.array[start : start + _CHUNK], preprocessing.channels)
            prepared[start : start + _CHUNK] = torch.tensor(chunk).permute(0, 3, 1, 2)
        return prepared

    def put(index: int) -> str | None:
        try:
            prepared[index] = prepare(images[index], preprocessing)
        except ImageError as error:
            return f"{split.ids[index]} {error.fault}"
        return None

    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        broken = [fault for fault in pool.map(put, range(len(split))) if fault]
    if broken:
        raise broken_pictures("data", broken, len(split))
    return prepared


def _as_it_is(batch: Any) -> Any:
    return batch
