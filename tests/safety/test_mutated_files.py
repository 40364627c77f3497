"""S02: damaged and forged files end in the library's own error, one line, soon, and in little memory."""

import json
import resource
import time
from pathlib import Path

import numpy as np
import pytest

import convpeft
from measuring import counted, measured, times
from safety.mutations import mutate
from safety.readers import READERS

# The families that the promise counts, and how many files of each in the full form.
FAMILIES = {
    "mutated adapters": (100_000, 1_000, [name for name in READERS if name.startswith("adapter-")]),
    "mutated checkpoints": (10_000, 300, [name for name in READERS if name.startswith("checkpoint-")]),
    "mutated patches": (10_000, 360, [name for name in READERS if name.startswith("patch-")]),
    "mutated npz files": (10_000, 300, ["npz"]),
    "mutated idx files": (10_000, 400, ["idx", "idx.gz", "idx.xz", "emnist-zip"]),
    "mutated CIFAR files": (10_000, 300, ["cifar-pickle", "cifar-archive"]),
    "mutated images": (10_000, 300, ["image"]),
    "mutated tables": (10_000, 300, ["table", "predictions"]),
    "mutated recipes and locks": (10_000, 300, ["recipe", "word", "lock"]),
    "mutated measurements": (1_000, 100, ["measurements"]),
    "mutated weights": (10_000, 300, ["weights-safetensors", "weights-torch"]),
    "mutated files of other packages": (
        10_000,
        400,
        ["peft-options", "peft-tensors", "lycoris", "loralib"],
    ),
}
# A digest protects these: what is accepted says the same as before.
PROTECTED = (
    "adapter-description",
    "adapter-tensors",
    "checkpoint-facts",
    "checkpoint-tensors",
    "patch-map",
    "patch-tensors",
)
LONGEST_SECONDS = 1.0  # of processor time
LARGEST_GROWTH = 200 * 2**20  # bytes over all files of a family


@pytest.mark.promise("S02")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.timeout(0)
def test_mutated_file_is_read_or_refused_in_one_line(family: str, tmp_path: Path) -> None:
    full, reduced, names = FAMILIES[family]
    rounds = -(-times(full=full, reduced=reduced) // len(names))
    for name in names:
        run = READERS[name].opened(tmp_path / name)
        seeds = READERS[name].seeds()
        originals = [_attempt(run, seed)[0] for seed in seeds.values()]
        rng = np.random.default_rng([len(name), *name.encode()])
        before = _memory()
        accepted = 0
        for number in range(rounds):
            content = mutate(name, rng, list(seeds.values())[number % len(seeds)])
            found, seconds = _attempt(run, content)
            accepted += found is not None
            assert seconds < LONGEST_SECONDS, (name, number, seconds, content[:200])
            measured("longest seconds", seconds)
            if name in PROTECTED and found is not None:
                assert _told(found) == _told(originals[number % len(seeds)]), (name, number)
        assert accepted < rounds or name == "word", name  # what is no value of TOML is a word
        growth = _memory() - before
        assert growth < LARGEST_GROWTH, (name, growth)
        measured("largest growth in MiB", growth / 2**20)
        counted(family, rounds)


def _attempt(run, content: bytes) -> tuple[object, float]:
    """What is read, None where it is refused, and the seconds it took; anything else is a failure."""
    started = time.process_time()
    try:
        found = run(content)
    except convpeft.ConvpeftError as error:
        found, line = None, str(error)
        assert line, content[:200]
        assert len(line.splitlines()) == 1, (line, content[:200])
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}; the file begins {content[:200]!r}") from error
    return found, time.process_time() - started


def _told(found: object) -> str:
    return json.dumps(found, sort_keys=True)


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
