"""Turn a data spec such as "folder:PATH" or "glyphs:digits" into a data set."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from convpeft.data.characters import EMNIST_VARIANTS, load_emnist, load_mnist, load_mnist_and_letters
from convpeft.data.cifar import CIFAR10, CIFAR100, load_cifar
from convpeft.data.cifar_c import load_cifar_c
from convpeft.data.datasets import Dataset, Parts
from convpeft.data.folders import load_folder
from convpeft.data.glyphs import GLYPH_SETS, load_glyphs
from convpeft.data.npz import load_npz
from convpeft.data.splits import as_found, complete
from convpeft.errors import OptionError, nearest


@dataclass(frozen=True)
class SourceInfo:
    """One kind of data spec, as `convpeft datasets` lists it.

    Args:
        pattern: What to write.
        description: What it reads.
        needs_network: Whether a spec without a root downloads what is not in the cache.
        classes: The number of classes, None where the files decide.
    """

    pattern: str
    description: str
    needs_network: bool
    classes: int | None


@dataclass(frozen=True)
class _Request:
    """What a source may depend on beside its name."""

    argument: str
    fold: int | None
    skip_broken: bool

    def root(self) -> Path | None:
        """The path after the colon, None for the cache."""
        return _path(self.argument) if self.argument else None


@dataclass(frozen=True)
class _Source:
    info: SourceInfo
    load: Callable[[_Request], Parts]


def _required(request: _Request) -> Path:
    root = request.root()
    assert root is not None
    return root


def _public(pattern: str, description: str, classes: int, load: Callable[[_Request], Parts]) -> _Source:
    return _Source(SourceInfo(f"{pattern}:ROOT", description, needs_network=True, classes=classes), load)


def _emnist(variant: str, description: str) -> _Source:
    classes = len(EMNIST_VARIANTS[variant].classes)
    return _public(f"emnist-{variant}", description, classes, lambda request: load_emnist(request.root(), variant))


_SOURCES = {
    "folder": _Source(
        SourceInfo("folder:PATH", "pictures in train/val/test or class folders, or with a labels.csv", False, None),
        lambda request: load_folder(_required(request), fold=request.fold, skip_broken=request.skip_broken),
    ),
    "npz": _Source(
        SourceInfo("npz:FILE", "an .npz file of the MedMNIST form", False, None),
        lambda request: load_npz(_required(request)),
    ),
    "mnist": _public("mnist", "MNIST digits", 10, lambda request: load_mnist(request.root())),
    "emnist-letters": _emnist("letters", "EMNIST letters, both cases merged"),
    "emnist-balanced": _emnist("balanced", "EMNIST digits and letters, 3,000 images a class"),
    "emnist-byclass": _emnist("byclass", "EMNIST digits, upper and lower case as they were written"),
    "mnist+letters": _public(
        "mnist+letters", "MNIST digits and EMNIST letters together", 36, lambda r: load_mnist_and_letters(r.root())
    ),
    "cifar10": _public(
        "cifar10",
        "CIFAR-10, archive or folders",
        10,
        lambda r: load_cifar(r.root(), CIFAR10, skip_broken=r.skip_broken),
    ),
    "cifar100": _public(
        "cifar100", "CIFAR-100, fine labels", 100, lambda r: load_cifar(r.root(), CIFAR100, skip_broken=r.skip_broken)
    ),
    "cifar-c": _Source(
        SourceInfo("cifar-c:DIR", "published files of CIFAR-10-C or CIFAR-100-C, to measure on", False, None),
        lambda request: load_cifar_c(_required(request)),
    ),
} | {
    f"glyphs:{name}": _Source(
        SourceInfo(f"glyphs:{name}", description, False, len(GLYPH_SETS[name])),
        lambda _, name=name: load_glyphs(name),
    )
    for name, description in (
        ("digits", "digits drawn from fonts, warped and noisy; always there"),
        ("letters", "upper and lower case letters, drawn the same way"),
        ("all", "digits and letters, with look-alikes such as 0 and O"),
    )
}


def list_sources() -> tuple[SourceInfo, ...]:
    """Return what data specs there are, in the order they are shown."""
    return tuple(source.info for source in _SOURCES.values())


def load_data(
    spec: str,
    *,
    seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    limit: int | None = None,
    fraction: float | None = None,
    per_class: int | None = None,
    val_per_class: int | None = None,
    fold: int | None = None,
    skip_broken: bool = False,
    whole: bool = False,
) -> Dataset:
    """Load a data set and make the splits it lacks.

    Args:
        spec: A pattern of `list_sources`, such as "folder:PATH". The public sets take an empty root ("mnist:")
            for the cache, and download what is not there.
        seed: Of the splits that are made, and of the part of train that is taken.
        val_fraction: Share of train that becomes validation where there is none, in (0, 1).
        test_fraction: Share of train that becomes test where there is none, in (0, 1).
        limit: At most this many training images, stratified by class.
        fraction: Share of the training images, stratified by class, in (0, 1]; groups such as patients stay whole.
        per_class: So many training images of each class.
        val_per_class: So many validation images of each class, chosen by the seed. Default: all there are.
        fold: Which fold of a labels.csv is the test split; the next one is validation.
        skip_broken: Leave pictures out that cannot be read and count them in the notes.
        whole: Take the images as they are, to measure a model on them: splits that are not there stay empty, and
            one class or one image is enough.

    Raises:
        OptionError: If the spec or an option is not one; the nearest spec is named.
        DataError: If the data cannot be found, read or split.
    """
    for name, share in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 < share < 1:
            raise OptionError(f"{name}={share}: expected a share between 0 and 1, such as 0.1.")
    if seed < 0:
        raise OptionError(f"seed={seed}: expected 0 or more.")
    if limit is not None and limit < 1:
        raise OptionError(f"limit={limit}: expected 1 or more, or no limit.")
    if fraction is not None and not 0 < fraction <= 1:
        raise OptionError(f"fraction={fraction}: expected a share of the training images above 0, at most 1.")
    if per_class is not None and per_class < 1:
        raise OptionError(f"per_class={per_class}: expected 1 or more training images of each class.")
    if val_per_class is not None and val_per_class < 1:
        raise OptionError(f"val_per_class={val_per_class}: expected 1 or more validation images of each class.")
    if sum(part is not None for part in (limit, fraction, per_class)) > 1:
        raise OptionError(
            "data.limit, data.fraction and data.per_class exclude each other: each says which part of train is taken. "
            "Give one of them."
        )
    source, argument = _parse(spec)
    if fold is not None and not source.info.pattern.startswith("folder:"):
        raise OptionError(f"fold={fold}: only folder: sources with a labels.csv have folds, not '{spec}'.")
    parts = source.load(_Request(argument, fold, skip_broken))
    if whole:
        return as_found(spec, parts)
    return complete(
        spec,
        parts,
        seed=seed,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        limit=limit,
        fraction=fraction,
        per_class=per_class,
        val_per_class=val_per_class,
    )


def _path(text: str) -> Path:
    """The path, with "~" as the home directory; as it is where there is no such home."""
    with suppress(RuntimeError):
        return Path(text).expanduser()
    return Path(text)


def _exists(text: str) -> bool:
    with suppress(OSError, ValueError):  # a name that the system cannot have
        return _path(text).exists()
    return False


def _parse(spec: str) -> tuple[_Source, str]:
    if spec in _SOURCES and spec.startswith("glyphs:"):
        return _SOURCES[spec], ""
    name, colon, argument = spec.partition(":")
    source = _SOURCES.get(name)
    if source is None:
        if spec and not colon and _exists(spec):
            raise OptionError(f"data '{spec}': is a path, expected a spec. Write 'folder:{spec}' or 'npz:{spec}'.")
        raise OptionError(f"data '{spec}': is no data spec. {nearest(spec, [info.pattern for info in list_sources()])}")
    if not argument and not source.info.needs_network:
        raise OptionError(f"data '{spec}': names no path. Write '{source.info.pattern}'.")
    if "\0" in argument:
        raise OptionError(f"data {spec!r}: the path holds a zero byte.")
    return source, argument
