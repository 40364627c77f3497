"""Pushing: two commits, four files, the card naming the first; what was pushed loads as the run does."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch

import convpeft
from convpeft.adapter_file import CONFIG, WEIGHTS
from convpeft.deployment.hub import push, write_upload
from convpeft.errors import AdapterFileError, OptionError, RunError
from deployment.hub_server import Hub
from tiny import files_below


def test_pushed_adapter_is_the_run_s_byte_for_byte(hub: Hub, bars: Path) -> None:
    pushed = push(bars, "me/bars")
    stored = hub.commits["me/bars"][str(pushed.address.revision)]
    for name in (CONFIG, WEIGHTS):
        assert stored[name] == (bars / "adapter" / name).read_bytes()
    assert pushed.url == f"{hub.url}/me/bars"


def test_pushed_adapter_loads_at_the_commit_that_the_card_names(hub: Hub, bars: Path) -> None:
    pushed = push(bars, "me/bars")
    card = hub.commits["me/bars"][hub.names["me/bars"]["main"]]["README.md"].decode()
    (address,) = set(re.findall(r"hf://me/bars@\w+", card))
    assert address == str(pushed.address)
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(convpeft.from_adapter(address).eval()(x), convpeft.from_adapter(bars).eval()(x))


def test_nothing_but_the_four_files_is_pushed(hub: Hub, bars: Path) -> None:
    push(bars, "me/bars")
    files = set(hub.commits["me/bars"][hub.names["me/bars"]["main"]])
    assert files == {".gitattributes", CONFIG, WEIGHTS, "confusion.png", "README.md"}


def test_adapter_without_a_run_is_pushed_without_a_figure(hub: Hub, bars: Path) -> None:
    push(bars / "adapter", "me/bare")
    files = hub.commits["me/bare"][hub.names["me/bare"]["main"]]
    assert "confusion.png" not in files
    assert b"No figures came with this adapter" in files["README.md"]


def test_pushing_again_goes_on_in_the_same_repository(hub: Hub, bars: Path) -> None:
    first, second = push(bars, "me/bars", private=True), push(bars, "me/bars")
    assert hub.private == {"me/bars": True}
    assert first.address != second.address


@pytest.mark.parametrize("private", [True, False])
def test_private_is_asked_for(hub: Hub, bars: Path, private: bool) -> None:
    push(bars, "me/bars", private=private)
    assert hub.private == {"me/bars": private}


def test_token_is_the_client_s_own(hub: Hub, bars: Path) -> None:
    push(bars, "me/bars")
    assert hub.tokens == {"Bearer hf_of_the_test"}


@pytest.mark.parametrize("name", ["bars", "../bars", "me/../bars", "hf://me/bars", "me/bars@v1", ""])
def test_name_of_no_repository_is_refused_before_anything(hub: Hub, bars: Path, name: str, tmp_path: Path) -> None:
    for act in (lambda: push(bars, name), lambda: write_upload(bars, name, tmp_path / "upload")):
        with pytest.raises(OptionError, match=r"is no repository on the hub\. Write USER/NAME"):
            act()
    assert hub.asked == []
    assert list(tmp_path.iterdir()) == []


def test_refusal_of_the_hub_is_one_line(hub: Hub, bars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("401 Unauthorized\nInvalid username or password")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", refuse)
    with pytest.raises(RunError) as caught:
        push(bars, "me/bars")
    assert str(caught.value).startswith(
        "me/bars: cannot be pushed (OSError: 401 Unauthorized Invalid username or password). Look at the network and "
    )


def test_missing_package_is_named_by_push(bars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RunError, match="push needs the package huggingface_hub"):
        push(bars, "me/bars")


def test_upload_folder_is_written_whole_and_again(bars: Path, tmp_path: Path) -> None:
    for _ in range(2):
        folder = write_upload(bars, "me/bars", tmp_path / "upload")
        assert files_below(folder) == {CONFIG, WEIGHTS, "confusion.png", "README.md"}
    assert files_below(tmp_path) == {f"upload/{name}" for name in files_below(folder)}


def test_folder_with_other_things_is_not_replaced(bars: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OptionError, match="holds something else than an upload"):
        write_upload(bars, "me/bars", tmp_path)
    assert files_below(tmp_path) == {"mine.txt"}


def test_upload_that_cannot_be_written_is_one_line(bars: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Free space or make it writable"):
        write_upload(bars, "me/bars", tmp_path / "file" / "upload")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[]", "the file is no table"),
        (b"{", "Expecting"),
        (b'{"test": 3}', "test is no table"),
        (b"\xff", "codec"),
        (b"[" * 100_000, "recursion|too deep"),
    ],
)
def test_damaged_figures_are_one_line(bars: Path, tmp_path: Path, content: bytes, why: str) -> None:
    run = copy_of(bars, tmp_path)
    (run / "metrics.json").write_bytes(content)
    with pytest.raises(RunError, match=why) as caught:
        write_upload(run, "me/bars", tmp_path / "upload")
    assert "is no readable record of this run" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("confusion", [[1, 2], [3, 4]], "has not a row for each class"),
        ("confusion", [[1, 2, 3], [4, 5], [6, 7, 8]], "a row that is no list of counts"),
        ("confusion", [[1, 2, 3], [4, 5, -1], [6, 7, 8]], "a row that is no list of counts"),
        ("confusion", [[0, 0, 0]] * 3, "holds no counts"),
        ("classes", ["a", "b", "c"], "not those of the adapter"),
        ("classes", "abc", "no list of strings"),
    ],
)
def test_figures_that_cannot_be_the_run_s_are_refused(
    bars: Path, tmp_path: Path, field: str, value: object, why: str
) -> None:
    run = copy_of(bars, tmp_path)
    facts = json.loads((run / "metrics.json").read_text())
    facts["test"][field] = value
    (run / "metrics.json").write_text(json.dumps(facts))
    with pytest.raises(RunError, match=why):
        write_upload(run, "me/bars", tmp_path / "upload")


def test_damaged_adapter_is_not_pushed(hub: Hub, bars: Path, tmp_path: Path) -> None:
    run = copy_of(bars, tmp_path)
    with (run / "adapter" / WEIGHTS).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    with pytest.raises(AdapterFileError, match=r"not the one that was saved|cannot be read"):
        push(run, "me/bars")
    assert hub.asked == []


def copy_of(run: Path, folder: Path) -> Path:
    import shutil

    return Path(shutil.copytree(run, folder / "run"))


def test_shell_pushes_and_predicts_from_the_hub(hub: Hub, bars: Path, tmp_path: Path) -> None:
    """As a user does, in processes that know the hub by HF_ENDPOINT alone."""
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache")}

    def shell(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "convpeft", *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done

    address = shell("push", bars, "me/bars").stdout.splitlines()[0]
    assert re.fullmatch(r"hf://me/bars@[0-9a-f]{40}", address)
    pictures = bars.parent / "images" / "low"
    here, there = shell("predict", bars, pictures), shell("predict", "hf://me/bars", pictures)
    assert here.stdout == there.stdout
    assert there.stderr.count("\n") == 1
    assert "hf://me/bars is now hf://me/bars@" in there.stderr
    assert shell("predict", address, pictures).stderr == ""
