"""Put an adapter on the Hugging Face Hub, with a card that says how to load exactly this state of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from convpeft.adapter_file import CONFIG, WEIGHTS
from convpeft.deployment.card_facts import CardFacts, read_facts
from convpeft.deployment.model_card import CONFUSION, model_card
from convpeft.errors import OptionError, RunError, one_line
from convpeft.hub_address import HubAddress, is_repository
from convpeft.reporting import plot_confusion, save_figure
from convpeft.writing import whole_directory

CARD = "README.md"
NOT_YET = "COMMIT"  # stands in a card for the commit that uploading makes
_FILES = (WEIGHTS, CONFIG, CONFUSION, CARD)

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Pushed:
    """What was uploaded: the address with the commit of the adapter's files, and the page to look at."""

    address: HubAddress
    url: str


def write_upload(path: Path, repository: str, target: Path) -> Path:
    """Write the folder that `push` would upload, and nothing else.

    Args:
        path: A run or an adapter.
        repository: `user/name` on the hub.
        target: The folder; one that is there is replaced if it holds nothing but such files.

    Raises:
        OptionError: If the name is none for a repository, or the folder holds something else.
        AdapterFileError: If the adapter is damaged.
        RunError: If the run's figures are, or the folder cannot be written.
    """
    check_repository(repository)
    facts = read_facts(path)
    if target.exists() and (not target.is_dir() or any(each.name not in _FILES for each in target.iterdir())):
        raise OptionError(f"{target}: exists and holds something else than an upload. Move it away.")
    try:
        with whole_directory(target) as work:
            _fill(work, facts)
            (work / CARD).write_text(model_card(facts, HubAddress(repository, NOT_YET)), encoding="utf-8")
    except OSError as error:
        raise RunError(f"{target}: cannot be written ({one_line(error)}). Free space or make it writable.") from None
    return target


def push(path: Path, repository: str, *, private: bool = False) -> Pushed:
    """Upload an adapter and its figure, then a card that names the commit of that first upload.

    Args:
        path: A run or an adapter.
        repository: `user/name` on the hub; it is made if it is not there.
        private: Make it a private one. Who may see one that is there already does not change.

    Raises:
        OptionError: If the name is none for a repository.
        AdapterFileError: If the adapter is damaged.
        RunError: If the run's figures are, or the hub does not take it.
    """
    check_repository(repository)
    facts = read_facts(path)
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
    except ModuleNotFoundError as error:
        raise RunError(f"push needs the package {error.name}; install it with pip install 'convpeft[hub]'.") from None
    api: Any = HfApi(library_name="convpeft")
    with tempfile.TemporaryDirectory() as folder:
        files = _fill(Path(folder), facts)
        added = [CommitOperationAdd(path_in_repo=each.name, path_or_fileobj=str(each)) for each in files]

        def commit(operations: list[Any], message: str) -> Any:
            return _asked(
                repository, lambda: api.create_commit(repository, operations=operations, commit_message=message)
            )

        _asked(repository, lambda: api.create_repo(repository, private=private or None, exist_ok=True))
        first = commit(added, "Add the adapter")
        address = HubAddress(repository, str(first.oid))
        card = model_card(facts, address).encode()
        commit([CommitOperationAdd(path_in_repo=CARD, path_or_fileobj=card)], "Describe the adapter")
    return Pushed(address, f"{api.endpoint}/{repository}")


def check_repository(name: str) -> None:
    """Refuse what is no name of a repository.

    Raises:
        OptionError: Saying the form.
    """
    if not is_repository(name):
        raise OptionError(f"{one_line(name)!r} is no repository on the hub. Write USER/NAME.")


def _fill(folder: Path, facts: CardFacts) -> list[Path]:
    """Put the adapter, byte for byte, and the figure of its mistakes into a folder."""
    for name in (WEIGHTS, CONFIG):
        shutil.copyfile(facts.file.path / name, folder / name)
    if facts.figures is not None:
        save_figure(plot_confusion(facts.figures.confusion, facts.figures.classes), folder / CONFUSION)
    return sorted(folder.iterdir())


def _asked(repository: str, ask: Callable[[], Answer]) -> Answer:
    """What the hub answers; a refusal in one line."""
    try:
        return ask()
    except Exception as error:  # the hub's client lets errors of several HTTP libraries through
        why = f"{type(error).__name__}: {one_line(error, 200)}"
        raise RunError(
            f"{repository}: cannot be pushed ({why}). Look at the network and at `hf auth whoami`, "
            "or upload the folder that --dry-run writes."
        ) from None
