"""Read a weights file without running anything in it, and load it so that every tensor fits."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from convpeft.errors import ModelError

StateDict = dict[str, Tensor]

_TORCH_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".tar")
_WRAPPERS = ("state_dict", "model_state_dict", "model")


class HeadDifference(NamedTuple):
    """The one layer in which a file and a model differ, and only in the number of outputs."""

    path: str
    in_file: int
    in_model: int


def read_weights(path: str | Path) -> StateDict:
    """Read the named tensors of a .safetensors file, or of a .pth, .pt, .th, .bin or .tar file of torch.save.

    A training checkpoint is unwrapped (its "state_dict", "model_state_dict" or "model"), and so is DataParallel's
    "module.".

    Raises:
        ModelError: If the file is missing, damaged, of another kind, or holds anything but finite tensors.
    """
    path = Path(path)
    try:
        found = path.is_file()
    except OSError:  # a name that the system cannot have
        found = False
    if not found:
        raise ModelError(f"weights file {str(path)!r}: no such file; give the path of a .safetensors or .pth file.")
    if path.suffix == ".safetensors":
        content: object = _read_safetensors(path)
    elif path.suffix in _TORCH_SUFFIXES:
        content = _read_torch(path)
    else:
        raise ModelError(
            f"weights file {str(path)!r}: expected .safetensors or one of {', '.join(_TORCH_SUFFIXES)}, "
            f"got {path.suffix or 'no suffix'!r}."
        )
    return _named_tensors(content, path)


def names_differ(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Say whether the state names other tensors than the model has; BatchNorm's counters do not matter."""
    own, given = ({name for name in names if not _is_counter(name)} for names in (model.state_dict(), state))
    return own != given


def head_difference(model: nn.Module, state: Mapping[str, Tensor]) -> HeadDifference | None:
    """Return the layer whose number of outputs is all that keeps the state from fitting, or None."""
    own = model.state_dict()
    differing = [name for name in state if name in own and state[name].shape != own[name].shape]
    paths = {name.rpartition(".")[0] for name in differing}
    weight = f"{next(iter(paths))}.weight" if len(paths) == 1 else ""
    if weight not in differing or any(state[name].shape[1:] != own[name].shape[1:] for name in differing):
        return None
    return HeadDifference(weight.removesuffix(".weight"), state[weight].shape[0], own[weight].shape[0])


def load_strictly(
    model: nn.Module, state: Mapping[str, Tensor], *, file: str, allow_missing: Iterable[str] = ()
) -> None:
    """Copy a state into the model; every tensor must have its place and every place its tensor.

    Counters of BatchNorm that old files lack (``num_batches_tracked``) start at zero, as in torch.

    Args:
        model: The model that takes the tensors.
        state: The tensors by name.
        file: The name that an error begins with.
        allow_missing: Names that the state need not have, such as those of a fresh head.

    Raises:
        ModelError: If a tensor is missing, unexpected or of another shape; the model is then left as it was.
    """
    problems = differences(model, state, allow_missing=allow_missing)
    if problems:
        raise ModelError(f"{file}: does not fit the model: {problems}. Use the weights of this very architecture.")
    model.load_state_dict(dict(state), strict=False)


def differences(model: nn.Module, state: Mapping[str, Tensor], *, allow_missing: Iterable[str] = ()) -> str:
    """Name up to three missing, unexpected and mis-shaped tensors each; empty when the state fits.

    >>> differences(nn.Linear(2, 3), {"weight": torch.zeros(4, 2), "extra": torch.zeros(1)})
    "1 missing ('bias'); 1 unexpected ('extra'); 1 mis-shaped ('weight' is (4, 2), expected (3, 2))"
    """
    own = model.state_dict()
    optional = set(allow_missing)
    missing = [_quoted(name) for name in own if name not in state and name not in optional and not _is_counter(name)]
    unexpected = [_quoted(name) for name in state if name not in own]
    misshaped = [
        f"{_quoted(name)} is {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    groups = (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
    return "; ".join(f"{len(items)} {word} ({_first_three(items)})" for word, items in groups if items)


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _read_torch(path: Path) -> object:
    try:
        _refuse_packed(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of old or odd files, which are then read or refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"weights file {str(path)!r}: is damaged, or holds Python objects besides tensors, which are never loaded; "
            "save model.state_dict() alone, best as .safetensors."
        ) from None
    except Exception as error:  # torch.load has no error of its own: a damaged file raises almost anything
        raise _damaged(path, error) from None


def _refuse_packed(path: Path) -> None:
    """torch.save stores its parts as they are; one that is packed may unpack into anything."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError("its parts are packed, as those of torch.save never are")


def _damaged(path: Path, error: Exception) -> ModelError:
    reason = (str(error).splitlines() or [""])[0][:120]
    return ModelError(f"weights file {str(path)!r}: cannot be read ({type(error).__name__}: {reason}); get it again.")


def _named_tensors(content: object, path: Path) -> StateDict:
    for _ in range(2):  # a checkpoint's "model" may hold a "state_dict" in turn
        content = next(
            (content[key] for key in _WRAPPERS if isinstance(content, Mapping) and _is_table(content.get(key))),
            content,
        )
    table = cast("Mapping[object, object]", content) if _is_table(content) else {}
    if not table or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in table.items()):
        raise ModelError(
            f"weights file {str(path)!r}: expected a table of named tensors (a state_dict), got something else; "
            "save model.state_dict()."
        )
    state = cast("StateDict", dict(table))
    for name, tensor in state.items():
        if tensor.is_quantized or tensor.layout != torch.strided or tensor.numel() > _stored(tensor):
            raise ModelError(
                f"weights file {str(path)!r}: tensor {_quoted(name)} is sparse, quantised or claims more numbers than "
                "the file holds; save plain tensors."
            )
        wide = (
            tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor
        )  # 8 bits know no isfinite
        if tensor.is_floating_point() and not bool(torch.isfinite(wide).all()):
            raise ModelError(f"weights file {str(path)!r}: tensor {_quoted(name)} holds NaN or infinity; get it again.")
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _stored(tensor: Tensor) -> int:
    """Numbers in the tensor's storage."""
    return tensor.untyped_storage().nbytes() // tensor.itemsize


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:77]}...")


def _first_three(items: list[str]) -> str:
    return ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")
