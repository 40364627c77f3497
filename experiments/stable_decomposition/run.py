"""Compress the CIFAR ResNets and SqueezeNet by stable decompositions, and restore them.

python experiments/stable_decomposition/run.py run --data DIR --weights DIR --budget small
python experiments/stable_decomposition/run.py page
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
RESULTS = "results.json"


def run(data: Path, weights: Path, folder: Path, *, name: str) -> None:
    """Measure the cases that the results do not hold yet, and write them after each."""
    import torch
    from images import digest, imagenet_halves, write_cifar
    from plan import BUDGETS, WEIGHTS, cases

    import convpeft
    from convpeft.compression.judging import Judge
    from convpeft.data import load_data
    from convpeft.models import preprocessing_of
    from convpeft.reporting import write_whole
    from convpeft.training.results import versions
    from measuring import Remembered, file_digest, measure

    torch.set_num_threads(1)
    budget, path = BUDGETS[name], folder / RESULTS
    content: dict[str, Any] = {"name": name, "budget": json.loads(json.dumps(budget.to_dict())), "lines": []}
    if path.is_file():
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["budget"] != content["budget"]:
            raise SystemExit(f"{path}: was made with another budget. Give another --results, or that budget.")
        content = held
    content |= {"versions": versions(), "digests": content.get("digests", {})}
    done = [{key: line[key] for key in ("kind", "network", "method", "setting", "seed")} for line in content["lines"]]
    missing = [case for case in cases(budget) if case not in done]
    with tempfile.TemporaryDirectory() as place:
        work, ready = Path(place), dict[tuple[str, int], Any]()
        for case in missing:
            network, seed = case["network"], case["seed"]
            if (network, seed) not in ready:
                model = convpeft.load_model(network, weights=weights / WEIGHTS[network]).eval()
                if network.startswith("cifar"):
                    images = work / f"cifar-{seed}.npz"
                    if not images.is_file():
                        write_cifar(data, images, budget, seed)
                    dataset = load_data(f"npz:{images}")
                    parts, classes, restore_on = (dataset.val, dataset.test), len(dataset.classes), images
                    content["digests"][f"cifar10, seed {seed}"] = digest(*dataset.splits().values())
                else:
                    parts, classes, restore_on = imagenet_halves(data, budget, seed), 1000, None
                    content["digests"][f"ImageNet sample, seed {seed}"] = digest(*parts)
                content["digests"][WEIGHTS[network]] = file_digest(weights / WEIGHTS[network])
                judge = Judge(parts[0], preprocessing_of(model), classes=classes)
                ready[network, seed] = (model, Remembered(judge.accuracy), parts[1], classes, restore_on)
            model, accuracy, test, classes, restore_on = ready[network, seed]
            line = measure(case, model, accuracy, test, budget, classes=classes, restore_on=restore_on, work=work)
            content["lines"].append(line)
            write_whole(path, (json.dumps(content, indent=1) + "\n").encode())
            told = {key: f"{each['accuracy']:.2%}" for key, each in line["restored"].items()}
            print(
                f"{case}: {line['parameters'][1] / line['parameters'][0]:.1%} of the parameters, "
                f"{line['before']['accuracy']:.2%} -> {line['thin']['accuracy']:.2%}, restored {told}, "
                f"{line['search_seconds']:.0f} s",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run_ = commands.add_parser("run", help="measure what is not in the results yet")
    page = commands.add_parser("page", help="write the page from the results")
    data = os.environ.get("CONVPEFT_DATA")
    run_.add_argument("--data", type=Path, default=data, required=not data, help="default: CONVPEFT_DATA")
    run_.add_argument("--weights", type=Path, help="folder of the weights; default: weights below --data")
    run_.add_argument("--budget", choices=("small", "medium"), default="small")
    page.add_argument("--docs", type=Path, default=REPOSITORY / "docs" / "results")
    for each in (run_, page):
        each.add_argument("--results", type=Path, default=HERE, metavar="FOLDER", help="of the JSON file")
    told = parser.parse_args()
    if told.command == "page":
        from page import write_page

        write_page(json.loads((told.results / RESULTS).read_text(encoding="utf-8")), told.docs)
        return
    run(Path(told.data), told.weights or Path(told.data) / "weights", told.results, name=told.budget)


if __name__ == "__main__":
    main()
