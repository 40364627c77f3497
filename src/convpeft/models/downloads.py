"""Find pretrained weights in the local caches, or fetch them; without a network, say so in seconds."""

from __future__ import annotations

import re
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlparse

from convpeft.errors import ModelError

PROBE_SECONDS = 3.0
_HASH_IN_NAME = re.compile(r"-([a-f0-9]{8,})\.")  # torchvision's rule: resnet18-f37072fd.pth


def reachable(url: str, *, seconds: float = PROBE_SECONDS) -> bool:
    """Say whether a server answers at this address within a few seconds; proxies in the environment are used.

    The request runs in a thread of its own, because looking up a name cannot be given a time limit.
    """
    answers: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "convpeft"})
        try:
            with urllib.request.urlopen(request, timeout=seconds):
                answers.append(True)
        except urllib.error.HTTPError:
            answers.append(True)  # a server that refuses is a server that answers
        except (OSError, ValueError):
            answers.append(False)

    thread = threading.Thread(target=ask, daemon=True, name="convpeft-probe")
    thread.start()
    thread.join(seconds + 1)
    return bool(answers and answers[0])


def fetch_from_hub(repository: str, filenames: Sequence[str], *, source: str) -> Path:
    """Return the local path of the first of these files that a Hugging Face repository has, downloading it at need.

    Args:
        repository: For example "timm/resnet18.a1_in1k".
        filenames: Names to try, the best one first.
        source: The name that an error begins with.

    Raises:
        ModelError: If no file is cached and none can be fetched.
    """
    from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for filename in filenames:
        cached = try_to_load_from_cache(repository, filename)
        if isinstance(cached, str):
            return Path(cached)
    url = hf_hub_url(repository, filenames[0])
    if constants.HF_HUB_OFFLINE or not reachable(url):
        raise _unreachable(source, url, f"pass it as weights=FILE (or fill the cache {constants.HF_HUB_CACHE})")
    reason = "none of its files is there"
    for filename in filenames:
        try:
            return Path(hf_hub_download(repository, filename, etag_timeout=PROBE_SECONDS))
        except LocalEntryNotFoundError as error:
            reason = _first_line(error)
        except EntryNotFoundError:
            continue
        except Exception as error:  # the hub's client lets errors of several HTTP libraries through
            reason = _first_line(error)
        break
    raise _failed(source, url, reason)


def fetch_from_url(url: str, *, source: str) -> Path:
    """Return the local path of a file of torch's hub cache, downloading it at need and checking the hash in its name.

    Raises:
        ModelError: If the file is not cached and cannot be fetched.
    """
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if path.is_file():
        return path
    if not reachable(url):
        raise _unreachable(source, url, f"put it at {path} (or pass it as weights=FILE)")
    expected = _HASH_IN_NAME.search(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            url, str(path), expected.group(1) if expected else None, progress=sys.stderr.isatty()
        )
    except (OSError, RuntimeError) as error:
        raise _failed(source, url, _first_line(error)) from None
    return path


def _unreachable(source: str, url: str, place: str) -> ModelError:
    return ModelError(
        f"{source}: its pretrained weights are not on this machine and {urlparse(url).hostname} cannot be reached; "
        f"download {url} and {place}, or start from random weights with pretrained=False."
    )


def _failed(source: str, url: str, reason: str) -> ModelError:
    return ModelError(
        f"{source}: downloading {url} failed ({reason}); try again, or download it yourself and pass weights=FILE."
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
