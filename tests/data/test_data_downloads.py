import hashlib
import http.server
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from data_files import write_mnist

from convpeft.data import characters, load_data
from convpeft.data.downloads import PublicFile, cache_directory, fetch
from convpeft.errors import DataError

CONTENT = b"x" * 3_000_000


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def served(tmp_path):
    """A folder and the address of a server on this machine that serves it."""
    folder = tmp_path / "served"
    folder.mkdir()

    def handler(*arguments):
        return _Handler(*arguments, directory=folder)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def public(address: str, content: bytes = CONTENT, *, name: str = "data.bin", max_bytes: int = 1 << 30) -> PublicFile:
    return PublicFile(f"{address}/{name}", hashlib.md5(content).hexdigest(), max_bytes)


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_file_is_fetched_once(served, tmp_path):
    folder, address = served
    (folder / "data.bin").write_bytes(CONTENT)
    assert fetch(public(address), tmp_path / "cache").read_bytes() == CONTENT
    (folder / "data.bin").unlink()
    assert fetch(public(address), tmp_path / "cache").read_bytes() == CONTENT
    assert entries(tmp_path / "cache") == ["data.bin"]


def test_progress_is_shown_on_standard_error(served, tmp_path, capfd):
    folder, address = served
    (folder / "data.bin").write_bytes(CONTENT)
    fetch(public(address), tmp_path / "cache")
    out, err = capfd.readouterr()
    assert "downloading data.bin" in err
    assert out == ""


def test_wrong_digest_is_refused_and_nothing_is_left(served, tmp_path):
    folder, address = served
    (folder / "data.bin").write_bytes(b"other")
    with pytest.raises(DataError, match=r"has md5 .*, expected .*; it was thrown away. Get data.bin .* put it at"):
        fetch(public(address), tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_file_larger_than_published_is_cut_off(served, tmp_path):
    folder, address = served
    (folder / "data.bin").write_bytes(CONTENT)
    with pytest.raises(DataError, match="sent more than the 1,000 bytes expected"):
        fetch(public(address, max_bytes=1000), tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_missing_file_on_the_server_is_a_named_error(served, tmp_path):
    with pytest.raises(DataError, match=r"data.bin: failed .*put it at"):
        fetch(public(served[1]), tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


@pytest.mark.promise("F08")
def test_no_network_says_what_to_provide_within_seconds(tmp_path):
    file = public("http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(DataError) as caught:
        fetch(file, tmp_path / "cache")
    assert time.perf_counter() - start < 10
    said = "the server does not answer, is there a network?"
    for part in (file.url, said, file.md5, str(tmp_path / "cache" / "data.bin")):
        assert part in str(caught.value)


def test_folder_that_cannot_be_written_is_named(served, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match="cannot write to"):
        fetch(public(served[1]), tmp_path / "cache")


def test_cache_follows_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("CONVPEFT_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path / "data"
    monkeypatch.delenv("CONVPEFT_CACHE")
    assert cache_directory() == Path.home() / ".cache" / "convpeft" / "data"


def test_mnist_without_a_root_is_downloaded_to_the_cache(served, tmp_path, monkeypatch):
    folder, address = served
    images = write_mnist(folder, labels=[*range(10)] * 3, suffix=".gz")
    files = {
        path.name.removesuffix(".gz"): public(address, path.read_bytes(), name=path.name) for path in folder.iterdir()
    }
    monkeypatch.setattr(characters, "_MNIST_FILES", files)
    monkeypatch.setenv("CONVPEFT_CACHE", str(tmp_path / "cache"))
    dataset = load_data("mnist:")
    assert np.array_equal(dataset.test.images[4][:, :, 0], images[4])
    assert len(entries(tmp_path / "cache" / "data" / "MNIST" / "raw")) == 4


def test_public_addresses_are_encrypted():
    files = [*characters._MNIST_FILES.values(), characters._EMNIST_FILE]
    assert all(file.url.startswith("https://") and len(file.md5) == 32 for file in files)
