"""Pretrained weights: from the caches, from the network, or asked for in seconds where there is neither."""

import http.server
import socket
import threading
import time

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError

from convpeft.errors import ModelError
from convpeft.models import downloads

URL = "https://weights.invalid/models/net-0123abcd.pth"
FILES = ("model.safetensors", "pytorch_model.bin")


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(downloads, "reachable", lambda url: False)


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setattr(downloads, "reachable", lambda url: True)


@pytest.fixture
def torch_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints"


def serve(status):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


@pytest.mark.parametrize("status", [200, 403, 404])
def test_a_server_that_answers_is_reachable(status, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = serve(status)
    try:
        assert downloads.reachable(f"http://127.0.0.1:{server.server_port}/x")
    finally:
        server.shutdown()
        server.server_close()


def test_a_closed_port_is_not_reachable(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert not downloads.reachable(f"http://127.0.0.1:{unused.getsockname()[1]}/x")


def test_a_server_that_never_answers_is_given_up_in_time(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        assert not downloads.reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/x", seconds=0.2)
        assert time.monotonic() - start < 2


def test_a_name_that_takes_forever_to_look_up_is_given_up_in_time(monkeypatch):
    release = threading.Event()

    def hang(*arguments, **options):
        release.wait(10)
        raise OSError

    monkeypatch.setattr(downloads.urllib.request, "urlopen", hang)
    start = time.monotonic()
    assert not downloads.reachable(URL, seconds=0.1)
    assert time.monotonic() - start < 3
    release.set()


def test_a_cached_file_of_the_hub_needs_no_network(monkeypatch, no_network, tmp_path):
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda repo, name: str(tmp_path / name) if "bin" in name else None
    )
    assert downloads.fetch_from_hub("timm/net", FILES, source="timm/net") == tmp_path / "pytorch_model.bin"


def test_without_a_network_the_file_of_the_hub_is_named(monkeypatch, no_network):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: None)
    with pytest.raises(ModelError) as caught:
        downloads.fetch_from_hub("timm/net.tag", FILES, source="timm/net.tag")
    message = str(caught.value)
    assert message.startswith("timm/net.tag: its pretrained weights are not on this machine and ")
    assert "/timm/net.tag/resolve/main/model.safetensors and pass it as weights=FILE (or fill the cache " in message
    assert "pretrained=False" in message
    assert "\n" not in message


def test_the_hub_switched_offline_is_not_asked(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(downloads, "reachable", lambda url: pytest.fail("asked"))
    with pytest.raises(ModelError, match="cannot be reached"):
        downloads.fetch_from_hub("timm/net", FILES, source="timm/net")


def test_the_second_file_of_the_hub_is_tried_where_the_first_is_missing(monkeypatch, network, tmp_path):
    def download(repository, filename, *, etag_timeout):
        if filename == FILES[0]:
            raise EntryNotFoundError("404")
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert downloads.fetch_from_hub("timm/net", FILES, source="timm/net") == tmp_path / FILES[1]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(EntryNotFoundError("404"), "none of its files is there"), (OSError("gone\nfar"), "OSError: gone")],
)
def test_a_failed_download_from_the_hub_is_one_line(monkeypatch, network, error, reason):
    def download(repository, filename, *, etag_timeout):
        raise error

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(ModelError) as caught:
        downloads.fetch_from_hub("timm/net", FILES, source="timm/net")
    assert f"failed ({reason}); try again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cached_file_of_torch_needs_no_network(no_network, torch_cache):
    torch_cache.mkdir()
    (torch_cache / "net-0123abcd.pth").write_bytes(b"")
    assert downloads.fetch_from_url(URL, source="torchvision/net") == torch_cache / "net-0123abcd.pth"


def test_without_a_network_the_address_and_the_place_are_named(no_network, torch_cache):
    with pytest.raises(ModelError) as caught:
        downloads.fetch_from_url(URL, source="torchvision/net")
    assert str(caught.value) == (
        "torchvision/net: its pretrained weights are not on this machine and weights.invalid cannot be reached; "
        f"download {URL} and put it at {torch_cache / 'net-0123abcd.pth'} (or pass it as weights=FILE), "
        "or start from random weights with pretrained=False."
    )


def test_a_download_is_checked_against_the_hash_in_its_name(monkeypatch, network, torch_cache):
    asked = []

    def download(url, path, hash_prefix, *, progress):
        asked.append((url, path, hash_prefix))

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    path = downloads.fetch_from_url(URL, source="torchvision/net")
    assert asked == [(URL, str(path), "0123abcd")]


def test_a_failed_download_is_one_line(monkeypatch, network, torch_cache):
    def download(url, path, hash_prefix, *, progress):
        raise RuntimeError("invalid hash value\nmore")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(ModelError, match=r"failed \(RuntimeError: invalid hash value\); try again, or download it"):
        downloads.fetch_from_url(URL, source="torchvision/net")
