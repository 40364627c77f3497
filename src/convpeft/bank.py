"""Many adapters on one frozen backbone: chosen for each call, or for each image of a batch."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast, overload

from torch import Tensor, nn

from convpeft.adapter_file import AdapterFile, read_adapter
from convpeft.adapters import Module
from convpeft.attachment import require_state
from convpeft.errors import AdapterFileError, ModelError, OptionError, nearest
from convpeft.fingerprints import base_tensors, fingerprint
from convpeft.injection import adapted_layers, state_of
from convpeft.mixing import find_odd_layers, run_all, run_each
from convpeft.routing import Parts, route_layers
from convpeft.sites import all_sites
from convpeft.slots import NormStatistics, slots_of
from convpeft.storage import check_base, rebuild_parts


@dataclass
class _Known:
    """What the bank knows of one adapter, in memory or not."""

    path: Path | None  # None: it was given in memory and stays there
    digest: str | None  # of the file's description, which covers every tensor
    classes: tuple[str, ...] | None
    num_classes: int | None  # of its own head


class Bank:
    """Hold adapters of one base and run each image through the one it asks for, without merging.

    The backbone is in memory once, whatever the number of adapters: the bank shares the tensors of the model it is
    given and never changes them or the model. It always evaluates, without gradients. Several threads may call it; they
    wait for each other only while adapters are read or dropped.

    Args:
        model: The base, without adapters, on the device it is to run on. Its weights must not change afterwards.
        capacity: Adapters from files that stay in memory, >= 1; the one that was used least recently makes room and is
            read again when it is asked for.

    Raises:
        ModelError: If adapters are attached to the model, or it is one that cannot be adapted.
        OptionError: If capacity is below 1.

    >>> import torch
    >>> from torch import nn
    >>> bank = Bank(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2)))
    >>> [len(logits) for logits in bank.run(torch.ones(2, 3, 3, 3), [None, None])]
    [2, 2]
    """

    def __init__(self, model: nn.Module, *, capacity: int = 64) -> None:
        if type(capacity) is not int or capacity < 1:
            raise OptionError(f"capacity={capacity!r} is out of range, a bank holds at least 1 adapter.")
        if state_of(model) is not None:
            raise ModelError(
                "adapters are attached to this model, and a bank starts from the base alone. "
                "Give Bank a fresh base, and the adapted model to bank.add(name, model)."
            )
        all_sites(model)  # refuses models that cannot be adapted
        self.capacity = capacity
        self._plain, self._routed = _share(model), _share(model)
        self._current = route_layers(self._routed)
        self._versions, self._base = _versions(model), fingerprint(model)
        self._known: dict[str, _Known] = {}
        self._parts: OrderedDict[str, Parts] = OrderedDict()  # in memory, least recently used first
        self._lock = threading.Lock()  # held for a moment: the two above change together
        self._reading = threading.Lock()  # held while a file is read
        self._odd: frozenset[str] | None = None  # layers that do not take a row an image; None: nobody has looked

    def add(self, name: str, source: str | Path | nn.Module) -> None:
        """Make an adapter known under a name, and keep it in memory while there is room.

        Args:
            name: Any string that is not in use.
            source: An adapter's directory, or a run's, read and checked now and whenever it comes into memory; or a
                model of the same base with one adapter on it, of which a copy is taken and never dropped.

        Raises:
            OptionError: If the name is in use or no string.
            AdapterFileError: If the file is missing, damaged, made for another base or on top of other adapters.
            ModelError: If the model has another base, or another number of adapters than one.
        """
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] - None means the base
            raise OptionError(f"name={name!r} is not a string. None stands for the base.")
        self._refuse_known(name)
        if isinstance(source, nn.Module):
            known, parts = self._take(source)
        else:
            with self._reading:
                file, parts = self._read(Path(source))
            classes = file.config["classes"]
            known = _Known(
                Path(source).absolute(),
                file.config["digest"],
                None if classes is None else tuple(classes),
                file.config["num_classes"],
            )
        with self._lock:
            self._refuse_known(name)
            self._known[name] = known
            if known.path is None or self._evictable() < self.capacity:
                self._parts[name] = parts

    def remove(self, name: str) -> None:
        """Forget an adapter; calls that are using it finish.

        Raises:
            OptionError: If there is none of that name.
        """
        with self._lock:
            self._find(name)
            del self._known[name]
            self._parts.pop(name, None)

    @property
    def names(self) -> tuple[str, ...]:
        """Every adapter that is known, in the order in which they were added."""
        with self._lock:
            return tuple(self._known)

    @property
    def loaded(self) -> tuple[str, ...]:
        """The adapters in memory, the least recently used one first."""
        with self._lock:
            return tuple(self._parts)

    def classes(self, name: str) -> tuple[str, ...] | None:
        """Class names of an adapter in the order of its outputs; None where it was saved without.

        Raises:
            OptionError: If there is none of that name.
        """
        with self._lock:
            return self._find(name).classes

    @overload
    def run(self, images: Tensor, names: str | None = None) -> Tensor: ...
    @overload
    def run(self, images: Tensor, names: Sequence[str | None]) -> list[Tensor]: ...
    def run(self, images: Tensor, names: str | Sequence[str | None] | None = None) -> Tensor | list[Tensor]:
        """Run images through an adapter, or each through its own.

        Args:
            images: Inputs (batch, channels, *space), prepared as for the base.
            names: One adapter for all images, or a sequence with one for each; None is the base with its own head.

        Returns:
            What the model returns, for one name. For a sequence a list of each image's outputs, as long as its head
            has classes; `torch.stack` makes a batch of those with equal heads.

        Raises:
            OptionError: If a name is not known, or there are not as many names as images.
            AdapterFileError: If an adapter has to be read again and its file is gone, damaged or another one.
            ModelError: If the network cannot run images of several adapters together: it mixes the images of a batch,
                or reads weights past a layer's forward.
        """
        if names is None or isinstance(names, str):
            return run_all(self._routed, self._current, images, self._fetch(names))
        if len(names) != len(images):
            raise OptionError(f"names: expected one for each of {len(images)} images, got {len(names)}.")
        held = {name: self._fetch(name) for name in dict.fromkeys(names)}
        if len(held) > 1 and self._odd is None:
            self._odd = find_odd_layers(self._routed, self._current, images)
        place = {name: number for number, name in enumerate(held)}
        which = [place[name] for name in names]
        return run_each(self._routed, self._current, images, list(held.values()), which, odd=self._odd or frozenset())

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse copies and pickles: they would hold the backbone a second time.

        Raises:
            ModelError: Always.
        """
        raise ModelError("a Bank is neither copied nor pickled. Make another from the model, and add the paths again.")

    def _refuse_known(self, name: str) -> None:
        if name in self._known:
            raise OptionError(f"name={name!r} is in use in this bank. Choose another, or bank.remove({name!r}).")

    def _find(self, name: str) -> _Known:
        if name not in self._known:
            raise OptionError(f"no adapter is called {name!r} in this bank. {nearest(str(name), self._known)}")
        return self._known[name]

    def _evictable(self) -> int:
        return sum(self._known[name].path is not None for name in self._parts)

    def _fetch(self, name: str | None) -> Parts:
        """An adapter's parts, from memory or its file; whoever holds them may go on when it is dropped."""
        if name is None:
            return {}
        found = self._from_memory(name)
        if found is not None:
            return found
        with self._reading:
            found = self._from_memory(name)  # another thread may have read it meanwhile
            if found is not None:
                return found
            with self._lock:
                known = self._find(name)
            file, parts = self._read(cast(Path, known.path))
            if file.config["digest"] != known.digest:
                raise AdapterFileError(
                    f"{file.path}: is another adapter than the one that was added as {name!r}. "
                    "Remove it from the bank and add it again."
                )
            with self._lock:
                if self._known.get(name) is known:
                    self._parts[name] = parts
                    self._make_room()
        return parts

    def _from_memory(self, name: str) -> Parts | None:
        with self._lock:
            self._find(name)
            if name in self._parts:
                self._parts.move_to_end(name)
            return self._parts.get(name)

    def _make_room(self) -> None:
        while self._evictable() > self.capacity:
            del self._parts[next(name for name in self._parts if self._known[name].path is not None)]

    def _read(self, path: Path) -> tuple[AdapterFile, Parts]:
        """Read an adapter and check it as `convpeft.load` does."""
        file = read_adapter(path)
        if _versions(self._plain) != self._versions:  # somebody trained or loaded into the model that was given
            self._versions, self._base = _versions(self._plain), fingerprint(self._plain)
        check_base(self._base, file)
        if file.config["below"]:
            raise AdapterFileError(
                f"{file.path}: was trained on top of {len(file.config['below'])} other adapters, and a bank runs one "
                "adapter an image. Merge the others into the base first."
            )
        _, parts = rebuild_parts(self._plain, file)
        return file, _resting([(path, part) for path, _, part in parts])

    def _take(self, model: nn.Module) -> tuple[_Known, Parts]:
        """Copy the adapter that is on a model of the same base."""
        state = require_state(model)
        if len(state.names) != 1:
            raise ModelError(
                f"a bank runs one adapter an image, and {len(state.names)} are attached to this model. "
                "Detach the others, or save each and add its path."
            )
        found = fingerprint(model)[0]
        if found != self._base[0]:
            raise ModelError(
                f"the adapted model's base is {found[:16]}, the bank's is {self._base[0][:16]}. Adapt the same base."
            )
        (name, record) = next(iter(state.names.items()))
        parts = [
            (path, copy.deepcopy(cast(Module | NormStatistics, part)))
            for path, layer in adapted_layers(model)
            for _, part in slots_of(layer).parts(name)
        ]
        return _Known(None, None, record.classes, record.num_classes), _resting(parts)


def _share(model: nn.Module) -> nn.Module:
    """The modules of a model once more, in evaluation mode, around the same tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}).eval()


def _versions(model: nn.Module) -> list[int]:
    """What changes when a tensor of the model is written to."""
    return [0 if tensor.is_inference() else tensor._version for tensor in base_tensors(model).values()]


def _resting(parts: Sequence[tuple[str, Module | NormStatistics]]) -> Parts:
    """Parts by path, in evaluation mode and frozen."""
    found: dict[str, tuple[Module | NormStatistics, ...]] = {}
    for path, part in parts:
        found[path] = (*found.get(path, ()), part.eval().requires_grad_(False))
    return found
