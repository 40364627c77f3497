"""Write every page and plot of figures again from the committed JSON: the same JSON gives the same bytes.

    python experiments/results.py [--out DIR] [NAME ...]

Without --out the pages in docs/ are replaced; nothing is trained or measured.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


@dataclass(frozen=True)
class Page:
    """A page of figures: what it is made from, and the command; {docs} stands for the folder it goes to."""

    name: str
    needs: str  # the committed figures, relative to the repository
    command: tuple[str, ...]
    files: tuple[str, ...]  # what it writes, relative to the folder of the documentation
    also: str = ""  # figures that the command looks for beside the page


PAGES = (
    Page(
        "arrangements",
        "experiments/arrangements/results.json",
        ("experiments/arrangements/run.py", "page", "--docs", "{docs}/results"),
        ("results/arrangements.md", "results/arrangements"),
    ),
    Page(
        "colora",
        "experiments/colora/results.json",
        ("experiments/colora/run.py", "page", "--docs", "{docs}/results"),
        ("results/colora.md", "results/colora"),
    ),
    Page(
        "kernels",
        "experiments/kernels/results.json",
        ("experiments/kernels/run.py", "page", "--docs", "{docs}/results"),
        ("results/kernels.md",),
    ),
    Page(
        "methods",
        "experiments/methods/oct.json",
        ("experiments/methods/run.py", "page", "--docs", "{docs}/results"),
        ("results/methods.md", "results/methods"),
    ),
    Page(
        "mnist_to_emnist",
        "experiments/mnist_to_emnist/results.jsonl",
        ("experiments/mnist_to_emnist/run.py", "page", "--docs", "{docs}/results"),
        ("results/mnist_to_emnist.md", "results/mnist_to_emnist"),
    ),
    Page(
        "oct_lora_against_probe",
        "experiments/oct_lora_against_probe/results.json",
        ("experiments/oct_lora_against_probe/run.py", "--page", "--docs", "{docs}/results"),
        ("results/oct_lora_against_probe.md",),
    ),
    Page(
        "retention",
        "experiments/retention/results.jsonl",
        ("experiments/retention/run.py", "page", "--docs", "{docs}/results"),
        ("results/retention.md", "results/retention"),
    ),
    Page(
        "robustness",
        "experiments/robustness/results.json",
        ("experiments/robustness/run.py", "page", "--docs", "{docs}/results"),
        ("results/robustness.md", "results/robustness"),
    ),
    Page(
        "small_data",
        "experiments/small_data/results.json",
        ("experiments/small_data/run.py", "page", "--docs", "{docs}/results"),
        ("results/small_data.md", "results/small_data"),
    ),
    Page(
        "stable_decomposition",
        "experiments/stable_decomposition/results.jsonl",
        ("experiments/stable_decomposition/run.py", "page", "--docs", "{docs}/results"),
        ("results/stable_decomposition.md", "results/stable_decomposition"),
    ),
    Page(
        "correctness",
        "docs/results/correctness.json",
        ("benchmarks/correctness/run.py", "page", "--results", "{docs}/results"),
        ("results/correctness.md",),
        also="results/correctness.json",
    ),
    Page(
        "bank",
        "docs/results/bank.json",
        ("benchmarks/bank/run.py", "page", "--out", "{docs}/results"),
        ("results/bank.md",),
        also="results/bank.json",
    ),
    Page(
        "deployment",
        "docs/results/deployment/bytes.json",
        ("benchmarks/deployment/page.py", "{docs}/results"),
        ("results/deployment.md",),
    ),
    Page(
        "promises",
        "docs/results/promises.json",
        ("benchmarks/promises/run.py", "page", "--out", "{docs}/promises.md"),
        ("promises.md",),
    ),
    Page(
        "training_cost",
        "docs/results/training_cost.json",
        ("benchmarks/training_cost/run.py", "page", "--out", "{docs}/results"),
        ("results/training_cost.md", "results/training_cost"),
        also="results/training_cost.json",
    ),
)


def write_page(page: Page, docs: Path) -> bool:
    """Write a page below a folder of documentation; whether its figures are there.

    Raises:
        CalledProcessError: If its command fails; what it said is on the screen.
    """
    if not (ROOT / page.needs).is_file():
        print(f"{page.name}: no {page.needs} yet, left out")
        return False
    (docs / "results").mkdir(parents=True, exist_ok=True)
    if page.also and docs != DOCS:
        shutil.copyfile(DOCS / page.also, docs / page.also)
    words = [word.replace("{docs}", str(docs)) for word in page.command]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True)
    return True


def main() -> int:
    """Write the pages that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {page.name: page for page in PAGES}
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; default: all")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the documentation (docs)")
    told = parser.parse_args()
    if unknown := [name for name in told.names if name not in known]:
        parser.error(f"there is no page {unknown[0]!r}; there are: {', '.join(known)}")
    for name in told.names or known:
        if write_page(known[name], told.out.resolve()):
            print(f"{name}: {', '.join(known[name].files)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
