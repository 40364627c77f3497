"""Addresses of the hub: one form, nothing that leads elsewhere, two files of one commit."""

import socket
import sys
import time
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

import convpeft
from convpeft.adapter_file import CONFIG, WEIGHTS, read_adapter
from convpeft.errors import AdapterFileError
from convpeft.evaluation.inference import load_classifier
from convpeft.hub_address import HubAddress, is_repository, read_address
from deployment.hub_server import Hub
from safety.payloads import payloads


@pytest.mark.parametrize(
    ("text", "repository", "revision"),
    [
        ("hf://user/name", "user/name", None),
        ("hf://user/name@v1.0", "user/name", "v1.0"),
        ("hf://Org_1/a-b.c@refs/pr/3", "Org_1/a-b.c", "refs/pr/3"),
        (Path("hf://user/name@main"), "user/name", "main"),
    ],
)
def test_address_is_read(text: str | Path, repository: str, revision: str | None) -> None:
    assert read_address(text) == HubAddress(repository, revision)


@pytest.mark.parametrize(
    "text",
    [
        "hf://../x", "hf://user/..", "hf://user/../name", "hf:///etc/passwd", "hf:////user/name", "hf://user",
        "hf://user/name/more", "hf://user/name@", "hf://user/name@../../x", "hf://user/name@a//b", "hf://user/name@-x",
        "hf://user/na me", "hf://user/name?x", "hf://user/name@v1@v2", "hf://user\\name", "hf://%2e%2e/x",
        "hf://user/name\n", "hf://user/name@v1\x00", "hf://u/n.git", "hf://file:///etc/passwd",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(AdapterFileError, match="is no address of the hub"):
        convpeft.from_adapter(text)


@pytest.mark.parametrize("text", ["file:///etc", "https://huggingface.co/user/name", "HF://user/name"])
def test_other_schemes_are_never_fetched(text: str) -> None:
    with pytest.raises(AdapterFileError, match="holds no adapter"):
        convpeft.from_adapter(text)


@pytest.mark.promise("S03")
def test_no_name_that_leads_elsewhere_is_a_repository(tmp_path: Path) -> None:
    for payload in payloads(tmp_path):
        for name in (payload, f"user/{payload}", f"{payload}/name"):
            if is_repository(name):
                assert not set(name) & set("\\%~$:\0")
                assert ".." not in name
                assert name.count("/") == 1


@pytest.fixture
def commit(hub: Hub, bars: Path) -> str:
    files = {name: (bars / "adapter" / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    commit = hub.commit("user/bars", files | {"pytorch_model.bin": b"evil", "setup.py": b"evil"})
    hub.names["user/bars"]["v1"] = commit
    hub.commit("user/bars", {CONFIG: b"{}", WEIGHTS: b""})  # what `main` is now
    return commit


def test_adapter_of_the_hub_answers_as_the_one_on_disk(hub: Hub, bars: Path, commit: str) -> None:
    with pytest.warns(UserWarning, match=f"hf://user/bars@v1 is now hf://user/bars@{commit}"):
        model = convpeft.from_adapter("hf://user/bars@v1")
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.eval()(x), convpeft.from_adapter(bars).eval()(x))


def test_load_and_classifier_take_an_address(hub: Hub, bars: Path, commit: str) -> None:
    address = f"hf://user/bars@{commit}"
    model = convpeft.detach(convpeft.from_adapter(bars))
    convpeft.load(model, address)
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.eval()(x), convpeft.from_adapter(bars).eval()(x))
    assert load_classifier(address).classes == ("high", "low", "middle")


def test_pinned_address_is_quiet_and_needs_the_network_once(hub: Hub, commit: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_adapter(f"hf://user/bars@{commit}")
        asked = len(hub.asked)
        read_adapter(f"hf://user/bars@{commit}")
    assert len(hub.asked) == asked


def test_only_the_two_files_are_asked_for_and_both_at_one_commit(hub: Hub, commit: str) -> None:
    with pytest.warns(UserWarning, match="Give that address to get the same adapter again"):
        read_adapter("hf://user/bars@v1")
    paths = {line.split(" ")[1] for line in hub.asked}
    assert paths == {f"/user/bars/resolve/v1/{CONFIG}", f"/user/bars/resolve/{commit}/{WEIGHTS}"}


def test_damaged_adapter_of_the_hub_is_refused(hub: Hub, commit: str) -> None:
    with pytest.warns(UserWarning, match="is now"), pytest.raises(AdapterFileError, match="not a readable description"):
        read_adapter("hf://user/bars")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("hf://user/none", "there is no such repository, or it is private and `hf auth login` has not been called"),
        ("hf://user/bars@v9", "it has no revision v9"),
        ("hf://user/empty", "it has no adapter_config.json"),
    ],
)
def test_what_the_hub_lacks_is_one_line(hub: Hub, commit: str, address: str, why: str) -> None:
    hub.commit("user/empty", {"README.md": b""})
    with pytest.raises(AdapterFileError) as caught:
        read_adapter(address)
    assert str(caught.value) == (
        f"{address}: cannot be fetched ({why}): put {CONFIG} and {WEIGHTS} into a folder and give that."
    )


@pytest.mark.promise("F08")
def test_without_a_network_the_files_to_provide_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client tries six times, for half a minute
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(AdapterFileError) as caught:
            read_adapter("hf://user/name")
    assert str(caught.value) == (
        "hf://user/name: cannot be fetched (no network): "
        "put adapter_config.json and adapter_model.safetensors into a folder and give that."
    )
    assert capfd.readouterr() == ("", "")


def test_failure_of_another_kind_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("first\nsecond")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(AdapterFileError, match=r"cannot be fetched \(OSError: first second\)"):
        read_adapter("hf://user/name")


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        AdapterFileError, match=r"needs the package huggingface_hub; install it with pip install 'convpeft\[hub\]'"
    ):
        read_adapter("hf://user/name")
