"""Addresses of adapters on the Hugging Face Hub: read strictly, and fetched at one commit, file by file by name."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from convpeft.errors import AdapterFileError, one_line

FORM = "hf://USER/NAME or hf://USER/NAME@REVISION"
_SCHEME = re.compile("hf:/{1,2}")
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}"
_REPOSITORY = re.compile(f"{_NAME}/{_NAME}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,199}")
_SECONDS = 5.0  # until a server that says nothing is given up


@dataclass(frozen=True)
class HubAddress:
    """A repository on the hub, and which state of it: a commit, a tag or a branch; None is its main branch."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        """The address as it is written."""
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_hub_address(path: str | Path) -> bool:
    """Whether this is meant as an address of the hub; pathlib keeps one slash of the two.

    >>> is_hub_address("hf://user/name"), is_hub_address(Path("hf://user/name")), is_hub_address("runs/oct")
    (True, True, False)
    """
    return str(path).startswith("hf:/")


def read_address(path: str | Path) -> HubAddress:
    """Read an address.

    Raises:
        AdapterFileError: If it is not of the one form that there is.

    >>> read_address("hf://user/name@v1.0")
    HubAddress(repository='user/name', revision='v1.0')
    """
    written = _SCHEME.sub("", str(path), count=1)
    repository, at, revision = written.partition("@")
    if not is_repository(repository) or (at and not _is_revision(revision)):
        raise AdapterFileError(f"{one_line(path)}: is no address of the hub. Write {FORM}.")
    return HubAddress(repository, revision or None)


def is_repository(name: str) -> bool:
    """Whether a name is `user/name`, with nothing in it that leads elsewhere.

    >>> is_repository("user/name"), is_repository("../name"), is_repository("user/..")
    (True, False, False)
    """
    return _REPOSITORY.fullmatch(name) is not None and ".." not in name and not name.endswith((".", ".git"))


def fetch_files(address: HubAddress, filenames: Sequence[str]) -> tuple[Path, HubAddress]:
    """Bring these files of a repository into the hub's local cache, all from one commit, and nothing else of it.

    Args:
        address: Where they are.
        filenames: Their names.

    Returns:
        The folder that they lie in, and the address with the commit.

    Raises:
        AdapterFileError: If there is no such repository, revision or file, or no network.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError as error:
        raise AdapterFileError(
            f"{address}: needs the package {error.name}; install it with pip install 'convpeft[hub]'."
        ) from None
    pinned, folder = address, Path()
    for name in filenames:
        try:
            with _quiet_client():
                file = hf_hub_download(pinned.repository, name, revision=pinned.revision, etag_timeout=_SECONDS)
        except Exception as error:  # the hub's client lets errors of several HTTP libraries through
            why = _reason(error, name, address)
            remedy = f"put {' and '.join(filenames)} into a folder and give that"
            raise AdapterFileError(f"{address}: cannot be fetched ({why}): {remedy}.") from None
        folder = Path(file).parent
        pinned = HubAddress(address.repository, folder.name)  # the next file is of this very commit
    return folder, pinned


@contextlib.contextmanager
def _quiet_client() -> Generator[None]:
    """No lines of the hub's client about each of its attempts: the last one ends in one line of ours."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _is_revision(text: str) -> bool:
    return _REVISION.fullmatch(text) is not None and not any(part in text for part in ("..", "//"))


def _reason(error: Exception, name: str, address: HubAddress) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        return "no network"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repository, or it is private and `hf auth login` has not been called"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {address.revision or 'main'}"
    if isinstance(error, errors.EntryNotFoundError):
        return f"it has no {name}"
    return f"{type(error).__name__}: {one_line(error, 160)}"
