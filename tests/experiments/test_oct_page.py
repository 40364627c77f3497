"""The OCT page follows from the committed results alone."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "oct_lora_against_probe"


def test_oct_page_is_regenerated_bit_equal() -> None:
    spec = importlib.util.spec_from_file_location("oct_run", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    results = json.loads((FOLDER / "results.json").read_text())
    assert module.page(results) == (ROOT / "docs" / "results" / "oct_lora_against_probe.md").read_text()
