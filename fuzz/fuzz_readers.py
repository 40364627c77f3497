"""Fuzz one reader, or all by turns, with atheris: whatever is no error of our own is a crash.

    python fuzz/fuzz_readers.py --reader npz [options of libFuzzer] CORPUS

`fuzz/run.py` runs every reader for its share of the time; `pip install atheris` first (Python 3.11).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import numpy as np
import torch

torch.set_num_threads(1)
warnings.simplefilter("ignore")
with atheris.instrument_imports(include=["convpeft"]):
    import convpeft
    from safety.readers import READERS
from safety.mutations import mutate  # noqa: E402 - what is damaged, not what reads

LARGEST = 1 << 17  # bytes that a custom mutation may grow to


def main(words: list[str]) -> None:
    """Fuzz the reader that is named."""
    chosen = "all"
    if "--reader" in words:
        at = words.index("--reader")
        chosen = words[at + 1]
        del words[at : at + 2]
    names = list(READERS) if chosen == "all" else [chosen]
    if unknown := [name for name in names if name not in READERS]:
        sys.exit(f"no reader {unknown[0]!r}; there are {', '.join(READERS)}")
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=base) as folder:
        runs = [READERS[name].opened(Path(folder) / name) for name in names]
        seeds = [next(iter(READERS[name].seeds().values())) for name in names]

        def read(content: bytes) -> None:
            if len(names) > 1 and content:
                run, content = runs[content[0] % len(runs)], content[1:]
            else:
                run = runs[0]
            try:
                run(content)
            except convpeft.ConvpeftError as error:
                if len(str(error).splitlines()) != 1:
                    raise AssertionError(f"several lines: {error!r}") from None

        def damage(content: bytes, longest: int, seed: int) -> bytes:
            """Change within the form as often as without regard to it."""
            rng = np.random.default_rng(seed)
            if len(names) > 1 or rng.integers(2):
                return atheris.Mutate(content, longest)
            try:
                return mutate(names[0], rng, content or seeds[0])[: min(longest, LARGEST)]
            except Exception:  # what is damaged already has no form to keep
                return atheris.Mutate(content, longest)

        atheris.Setup(words, read, custom_mutator=damage)
        sys.stderr.write(f"STARTED {time.monotonic()}\n")
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
