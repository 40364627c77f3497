"""`convpeft push`: put an adapter on the Hugging Face Hub, or write what would be put there."""

from __future__ import annotations

from pathlib import Path

from convpeft.console import say
from convpeft.errors import OptionError
from convpeft.hub_address import is_hub_address, read_address


def push_run(path: Path, repository: str, *, private: bool, dry_run: bool) -> None:
    """Upload a run's adapter with its card; or write the folder beside the run and show the card."""
    from convpeft.deployment.hub import CARD, NOT_YET, push, write_upload

    if is_hub_address(path):
        raise OptionError(f"{read_address(path)}: is on the hub already. Give a run or an adapter on this machine.")
    if dry_run:
        here = path.resolve()
        folder = write_upload(path, repository, here.with_name(f"{here.name}-push"))
        say((folder / CARD).read_text(encoding="utf-8"))
        for file in sorted(folder.iterdir()):
            say(f"{file}: {file.stat().st_size:,} bytes")
        say(f"Nothing was uploaded. Uploading puts the commit in the place of {NOT_YET}.")
        return
    pushed = push(path, repository, private=private)
    say(f"{pushed.address}")
    say(f"card: {pushed.url}")
