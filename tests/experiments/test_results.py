"""`make results`: every page and plot of figures is what the committed JSON gives, byte for byte."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def _driver():
    spec = importlib.util.spec_from_file_location("results_driver", ROOT / "experiments" / "results.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


DRIVER = _driver()


def files(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    found = [path for name in names for path in sorted([folder / name, *(folder / name).rglob("*")]) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize("page", DRIVER.PAGES, ids=lambda page: page.name)
def test_committed_page_is_what_the_committed_figures_give(page, tmp_path):
    if not DRIVER.write_page(page, tmp_path):
        pytest.skip(f"{page.needs} is not committed yet")
    made = files(tmp_path, page.files)
    assert made
    assert made == files(DOCS, page.files)


def test_every_page_of_results_has_a_command():
    known = {name for page in DRIVER.PAGES for name in page.files}
    pages = {f"results/{path.name}" for path in (DOCS / "results").glob("*.md")} - {"results/index.md"}
    assert pages <= known
