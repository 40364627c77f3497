"""Every example runs as it stands, in an empty folder, and is short."""

from __future__ import annotations

import importlib.util
import runpy
import time
import warnings
from pathlib import Path

import pytest

from measuring import measured

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {"lightning_training": "lightning", "transformers_trainer": "transformers", "timm_training": "timm"}
MOST_LINES = 60
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOK = EXAMPLES / "quickstart.ipynb"


def test_there_are_five_examples() -> None:
    assert {path.stem for path in (*SCRIPTS, NOTEBOOK)} == {"pytorch_loop", "quickstart", *NEEDS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example_is_short(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) < MOST_LINES


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example_runs_and_ends_with_equal_logits(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each asserts its accuracy and that the reloaded adapter gives equal logits; convpeft itself warns of nothing."""
    needed = NEEDS.get(script.stem, "torch")
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    assert "assert torch.equal(again(" in script.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the other libraries say of a machine without a GPU, and the like
        warnings.filterwarnings("error", module="convpeft")
        runpy.run_path(str(script), run_name="__main__")
    measured(f"seconds of {script.stem}", time.perf_counter() - began)
    assert list(tmp_path.glob("*-adapter/adapter_model.safetensors"))


def test_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the event loop
        nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "quickstart-adapter" / "adapter_config.json").is_file()
    assert "saved, loaded, merged and switched off" in str(notebook.cells[-1].outputs)


def test_notebook_is_committed_without_outputs() -> None:
    import json

    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(cell.get("outputs", []) == [] and cell.get("execution_count") is None for cell in cells)
