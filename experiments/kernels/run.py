"""Does accuracy pay for speed? Train in every way of computing, and compare on the same test images.

python experiments/kernels/run.py run --data DIR   # what the JSON file does not hold yet
python experiments/kernels/run.py page             # the page from the JSON file
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))  # for what the experiments share
RESULTS = "results.json"


def run(root: Path, folder: Path, *, names: list[str], again: bool) -> None:
    """Make the runs that are missing, or all that are named."""
    import numpy as np
    import torch
    from common.answers import packed
    from plan import MODES, SEEDS, budget, recipe

    import convpeft
    from convpeft.reporting import write_whole
    from convpeft.training.results import versions
    from convpeft.training.runs import as_recipe, open_run, run_prepared

    torch.set_num_threads(1)
    path = folder / RESULTS
    content: dict[str, Any] = {"budget": budget(), "versions": versions(), "runs": []}
    if path.is_file():
        content["runs"] = json.loads(path.read_text(encoding="utf-8"))["runs"]
        if json.loads(path.read_text(encoding="utf-8"))["budget"] != content["budget"]:
            raise SystemExit(f"{path}: was made with another budget. Give another --results, or that budget.")
    known = {(line["mode"], line["seed"]) for line in content["runs"]}
    with tempfile.TemporaryDirectory() as work:
        for seed in SEEDS:
            missing = [name for name in names if again or (name, seed) not in known]
            if not missing:
                continue
            data = Path(work) / f"images-{seed}.npz"
            write_images(root, data, seed)
            for name in missing:
                began = time.perf_counter()
                out = Path(work) / f"{list(MODES).index(name)}-{seed}"
                with open_run(as_recipe(recipe(MODES[name], data=data, root=root, out=out, seed=seed))) as prepared:
                    result = run_prepared(prepared, out, resume=False, watcher=None)
                    chosen = convpeft.kernels_of(prepared.model)
                predictions = result.predictions
                right = predictions.probabilities.argmax(1) == predictions.labels
                line = {
                    "mode": name,
                    "seed": seed,
                    "accuracy": float(np.mean(right)),
                    "kernels": dict(sorted(Counter(chosen.sites.values()).items())),
                    "folded": len(chosen.folded),
                    "layout": chosen.layout,
                    "train_losses": [round(epoch.train_loss, 5) for epoch in result.fit.history],
                    "right": packed(right),
                    "seconds": round(time.perf_counter() - began, 1),
                }
                kept = [old for old in content["runs"] if (old["mode"], old["seed"]) != (name, seed)]
                order = {(mode, each): place for place, (mode, each) in enumerate((m, s) for m in MODES for s in SEEDS)}
                content["runs"] = sorted([*kept, line], key=lambda run: order[run["mode"], run["seed"]])
                write_whole(path, (json.dumps(content, indent=1) + "\n").encode())
                print(f"{name}, seed {seed}: test {line['accuracy']:.2%}, {line['seconds']:.0f} s", flush=True)


def write_images(root: Path, path: Path, seed: int) -> None:
    """As many images of each class as the plan says, drawn by the seed; the test images are the same for all seeds."""
    import numpy as np
    from plan import IMAGES, TEST, TRAIN, VAL

    from convpeft.data import read_image

    classes = sorted(each.name for each in (root / IMAGES / "train").iterdir() if each.is_dir())
    arrays: dict[str, Any] = {"classes": np.array(classes)}
    rng = np.random.default_rng(seed)
    parts: dict[str, list[tuple[Path, int]]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(classes):
        files = sorted((root / IMAGES / "train" / name).iterdir())
        chosen = [files[index] for index in rng.permutation(len(files))[: (TRAIN + VAL) // len(classes)]]
        of_train = TRAIN // len(classes)
        parts["train"] += [(file, label) for file in chosen[:of_train]]
        parts["val"] += [(file, label) for file in chosen[of_train:]]
        tested = sorted((root / IMAGES / "test" / name).iterdir())[: TEST // len(classes)]
        parts["test"] += [(file, label) for file in tested]
    for split, files in parts.items():
        arrays[f"{split}_images"] = np.stack([read_image(file) for file, _ in files])
        arrays[f"{split}_labels"] = np.array([label for _, label in files])
    np.savez(path, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run_ = commands.add_parser("run", help="train what is not in the results yet")
    page = commands.add_parser("page", help="write the page from the results")
    data = os.environ.get("CONVPEFT_DATA")
    run_.add_argument("--data", type=Path, default=data, required=not data, help="default: CONVPEFT_DATA")
    run_.add_argument("--modes", nargs="+", metavar="NAME", help="default: all")
    run_.add_argument("--again", action="store_true", help="make what is named anew, though it is there")
    page.add_argument("--docs", type=Path, default=REPOSITORY / "docs" / "results")
    for each in (run_, page):
        each.add_argument("--results", type=Path, default=HERE, metavar="FOLDER", help="of the JSON file")
    told = parser.parse_args()
    if told.command == "page":
        from page import write_page

        write_page(json.loads((told.results / RESULTS).read_text(encoding="utf-8")), told.docs)
        return
    from plan import MODES

    names = told.modes or list(MODES)
    if unknown := [name for name in names if name not in MODES]:
        parser.error(f"there is no mode {unknown[0]!r}; there are: {', '.join(MODES)}")
    run(told.data, told.results, names=names, again=told.again)


if __name__ == "__main__":
    main()
