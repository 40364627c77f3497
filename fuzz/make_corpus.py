"""Write the seed corpus, good files and attacks by reader; always the same bytes.

python fuzz/make_corpus.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LARGEST = 1 << 16  # bytes; larger seeds slow a fuzzer down


def make_corpus(folder: Path) -> int:
    """Write folder/READER/NUMBER for every reader, and return the number of files."""
    if str(HERE.parent / "tests") not in sys.path:
        sys.path.insert(0, str(HERE.parent / "tests"))
    from safety.attacks import attacks
    from safety.readers import READERS

    written = 0
    for name, hostile in attacks().items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        files = dict.fromkeys([*READERS[name].seeds().values(), *hostile.values()])
        for number, content in enumerate(each for each in files if len(each) <= LARGEST):
            (place / f"{number:03}").write_bytes(content)
            written += 1
    return written


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "corpus"
    sys.stdout.write(f"{make_corpus(target)} files in {target}\n")
