"""Read every hostile file under an audit hook and print what happened as JSON; run as a script by test_no_code_runs."""

from __future__ import annotations

import json
import os
import pickle
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path


def main(root: Path) -> None:
    """Warm every reader up on good files, arm the hook, and read the bad ones."""
    os.chdir(root)
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import encodings.latin_1
    import encodings.raw_unicode_escape  # noqa: F401 - old pickles are decoded by these two

    import convpeft
    import convpeft.models.timm_models
    import convpeft.models.torchvision_models
    from safety.attacks import CANARY, attacks, pickles
    from safety.auditing import Watch
    from safety.readers import READERS

    hostile = attacks()
    runs = {name: reader.opened(root / name) for name, reader in READERS.items()}
    for name, reader in READERS.items():
        for content in (*reader.seeds().values(), b"", b"\0" * 100):  # what a refusal imports belongs to warm-up
            with suppress(convpeft.ConvpeftError):
                runs[name](content)
    watch = Watch(root, importable=("PIL.", "encodings."))
    outcome: dict[str, object] = {"events": {}, "errors": {}, "files": 0}
    seconds: dict[str, float] = {}
    for name, files in hostile.items():
        for attack, content in files.items():
            with watch.armed() as events:
                started = time.process_time()
                try:
                    runs[name](content)
                except convpeft.ConvpeftError as error:
                    if len(str(error).splitlines()) != 1:
                        outcome["errors"][f"{name}: {attack}"] = f"several lines: {error}"[:300]  # type: ignore[index]
                except Exception as error:
                    outcome["errors"][f"{name}: {attack}"] = f"{type(error).__name__}: {error}"[:300]  # type: ignore[index]
                seconds[f"{name}: {attack}"] = time.process_time() - started
            outcome["files"] += 1  # type: ignore[operator]
            if events:
                outcome["events"][f"{name}: {attack}"] = events[:5]  # type: ignore[index]
    outcome["slowest"] = sorted(((value, key) for key, value in seconds.items()), reverse=True)[:5]
    outcome["canary"] = (root / CANARY).exists()
    with watch.armed() as events:  # the hook sees what an ordinary reader would have done
        for name in ("system-2", "exec-4", "import-0"):
            pickle.loads(pickles()[name])
        with tempfile.TemporaryFile():
            pass
    outcome["planted"] = events
    sys.stdout.write(json.dumps(outcome) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
