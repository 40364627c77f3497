"""The benchmark of training cost counts what it says, survives what fails, and its page is what was measured."""

from __future__ import annotations

import argparse
import importlib
import json
import mmap
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import convpeft

ROOT = Path(__file__).parents[1]
BENCHMARK, PAGE = ROOT / "benchmarks" / "training_cost", ROOT / "docs" / "results" / "training_cost.md"
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import modules of the benchmark; other folders have modules of the same names."""
    names = [path.stem for path in BENCHMARK.glob("*.py")]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(BENCHMARK))
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARK / "run.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_saved_bytes_are_those_of_the_input_and_of_the_output_of_tanh(load: Load):
    layer, x = nn.Linear(4, 3), torch.randn(2, 4)
    saved = load("measures").saved_bytes(lambda: layer(x).tanh().square().sum(), layer.parameters())
    assert saved == 4 * (2 * 4 + 2 * 3)  # tanh and square keep the same tensor


def test_saved_bytes_leave_parameters_and_buffers_out(load: Load):
    weight, x = torch.randn(5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    saved_bytes = load("measures").saved_bytes
    assert saved_bytes(lambda: (x * weight).sum(), []) == 4 * (7 * 5 + 5)
    assert saved_bytes(lambda: (x * weight).sum(), [weight]) == 4 * 7 * 5


def test_saved_bytes_of_views_count_their_storage_once(load: Load):
    x = torch.randn(6, 6)
    scale = torch.ones(6, 6, requires_grad=True)
    assert load("measures").saved_bytes(lambda: (scale * x * x.T).sum(), [scale]) == 4 * 36


def count(load: Load, layer: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    return load("measures").operations(lambda: layer(x).sum(), lambda loss: loss.backward())


def test_operations_of_a_convolution_are_those_computed_by_hand(load: Load):
    forward = 2 * (3 * 3) * 8 * (3 * 3 * 3)
    assert count(load, nn.Conv2d(3, 8, 3), torch.randn(1, 3, 5, 5)) == (forward, forward)
    assert count(load, nn.Conv2d(3, 8, 3), torch.randn(1, 3, 5, 5, requires_grad=True)) == (forward, 2 * forward)


def test_operations_of_a_grouped_convolution_are_those_of_its_groups(load: Load):
    forward = 2 * (2 * 2) * 8 * 2
    found = count(load, nn.Conv2d(4, 8, 1, groups=2), torch.randn(1, 4, 2, 2, requires_grad=True))
    assert found == (forward, 2 * forward)


def test_operations_are_those_of_the_counter_of_pytorch(load: Load):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
    x = torch.randn(2, 3, 8, 8)
    with FlopCounterMode(display=False) as counter:
        net(x).sum().backward()
    assert sum(count(load, net, x)) == counter.get_total_flops()


def test_operations_inside_a_kernel_of_convpeft_are_counted(load: Load):
    found: dict[str, int] = {}
    for kernel in ("weight", "hybrid"):
        net = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False))
        convpeft.attach(net, "lora", rank=4, include=["conv"])
        convpeft.set_kernels(net, kernel=kernel, layout="contiguous")
        found[kernel] = sum(count(load, net, torch.randn(2, 64, 16, 16, requires_grad=True)))
    one = 2 * (2 * 16 * 16) * 64 * (64 * 9)
    products = 2 * 64 * 4 * (64 * 9)  # up @ down
    assert found["weight"] == pytest.approx(3 * one + 3 * products)
    assert 2 * one < found["hybrid"] < 2.5 * one


def test_peak_growth_is_what_a_step_holds_at_once(load: Load):
    size = 64 << 20

    def step() -> None:
        with mmap.mmap(-1, size) as fresh:  # what the process has freed before would be used again
            for page in range(0, size, mmap.PAGESIZE):
                fresh[page] = 1

    assert 0.95 * size < load("measures").peak_growth(step, 2) < 1.5 * size  # the kernel counts roughly


def test_ratios_are_those_of_each_round_and_their_quartiles(load: Load):
    measures = load("measures")
    ratios = measures.pairwise([1.0, 3.0, 2.0, 10.0, 6.0], [2.0, 3.0, 4.0, 5.0, 4.0])
    assert ratios == [0.5, 1.0, 0.5, 2.0, 1.5]
    assert measures.spread(ratios) == (0.5, 1.0, 1.5)
    assert measures.spread([0.7]) == (0.7, 0.7, 0.7)


def test_alternating_calls_are_timed_in_turns(load: Load, monkeypatch: pytest.MonkeyPatch):
    measures, order = load("measures"), []
    monkeypatch.setattr(measures, "seconds", lambda call, steps: call())
    assert measures.alternate(lambda: order.append("a") or 3.0, lambda: order.append("b") or 2.0, 4) == [1.5] * 4
    assert "".join(order) == "ba" + "ab" + "ba" + "ab" + "ba" + "ab"


class Pretended:
    """A member that takes as long as it is told, by mode and layout; some die."""

    seconds: dict[tuple[str, str], float]
    dies_at: dict[str, str]

    def __init__(self, cell: Any, *, threads: int) -> None:
        self.cell = cell

    def build(self) -> None:
        self._die("build")

    def ask(self, command: str) -> Any:
        self._die(command)
        if command == "step":
            return self.seconds[self.cell.mode, self.cell.layout]
        if command == "merge":
            return {"inference_ratios": [1.0]}
        counts = {"saved_bytes": 10, "operations_forward": 1, "operations_backward": 2, "chosen": {}}
        return counts if command == "count" else {"memory_bytes": 1, "trainable": 1, "note": ""}

    def _die(self, command: str) -> None:
        if self.dies_at.get(self.cell.mode) == command:
            raise sys.modules["crew"].LostError(f"died in {command}")

    def close(self) -> None:
        pass


@pytest.fixture
def pretend(load: Load, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Measure some modes with members that only pretend; rows by mode."""

    def measure(modes: list[str], seconds: dict[tuple[str, str], float], **dies_at: str) -> dict[str, Any]:
        rounds, plan = load("rounds"), load("plan")
        monkeypatch.setattr(rounds, "Member", Pretended)
        Pretended.seconds, Pretended.dies_at = seconds, dies_at
        rows = rounds.measure([plan.Cell("resnet18", mode, 4) for mode in modes], rounds=3, threads=1)
        return {row["mode"]: row for row in rows}

    return measure


FULL = {("full", "contiguous"): 2.0, ("full-channels-last", "channels_last"): 1.0}


def test_baseline_is_the_faster_of_the_two_in_these_rounds(pretend: Callable[..., dict[str, Any]]):
    rows = pretend(["full", "default"], FULL | {("default", "own"): 0.5})
    assert list(rows) == ["full", "default"]
    assert rows["full"]["ratios"] == [2.0] * 3
    assert rows["default"]["ratios"] == [0.5] * 3
    assert rows["default"]["baseline"] == "full-channels-last"


def test_library_is_measured_in_the_layout_that_is_faster_for_it(pretend: Callable[..., dict[str, Any]]):
    times = {("peft-lora", "contiguous"): 3.0, ("peft-lora", "channels_last"): 4.0}
    row = pretend(["peft-lora"], FULL | times)["peft-lora"]
    assert (row["layout"], row["ratios"]) == ("contiguous", [3.0] * 3)


@pytest.mark.parametrize("command", ["build", "start", "step", "count"])
def test_mode_that_fails_is_a_row_with_its_error_and_the_others_go_on(
    pretend: Callable[..., dict[str, Any]], command: str
):
    rows = pretend(["default", "lean"], FULL | {("default", "own"): 0.5, ("lean", "own"): 0.5}, lean=command)
    assert rows["lean"]["error"] == f"died in {command}"
    assert "ratios" not in rows["lean"]
    assert rows["default"]["ratios"] == [0.5] * 3


def test_merge_that_fails_costs_only_its_own_figure(pretend: Callable[..., dict[str, Any]]):
    row = pretend(["default"], FULL | {("default", "own"): 0.5}, default="merge")["default"]
    assert (row["inference_error"], row["ratios"]) == ("died in merge", [0.5] * 3)


def test_group_without_a_baseline_has_no_ratios(pretend: Callable[..., dict[str, Any]]):
    dead = {"full": "build", "full-channels-last": "build"}
    row = pretend(["default"], FULL | {("default", "own"): 0.5}, **dead)["default"]
    assert row["error"] == "no baseline: died in build"


def test_worker_turns_an_error_into_an_answer_of_one_line(load: Load, capsys: pytest.CaptureFixture[str]):
    worker, absent = load("worker"), load("trainee").NotOfferedError

    def fail(error: Exception) -> dict[str, Any]:
        def call() -> None:
            raise error

        return worker._answer(call)

    assert fail(ValueError("a\n b")) == {"error": "ValueError: a b", "absent": False}
    assert fail(absent("it has none")) == {"error": "it has none", "absent": True}
    assert "Traceback" in capsys.readouterr().err


def test_every_mode_is_in_one_group_of_one_baseline(load: Load):
    plan = load("plan")
    grouped = [mode for group in plan.GROUPS for mode in group]
    assert sorted(grouped) == sorted(plan.MODES)
    assert all(len({plan.MODES[mode].against for mode in group}) == 1 for group in plan.GROUPS)
    twins = {mode.same_as for mode in plan.MODES.values() if mode.same_as}
    assert twins == {"default", "dora", "loha", "lokr"}


@pytest.mark.parametrize("fast", [False, True])
def test_what_is_said_is_measured_and_nothing_else(load: Load, fast: bool):
    command = load("run")
    told = argparse.Namespace(nets=["resnet50"], modes=["default"], rounds=3, fast=fast, device="cpu")
    command._fill_in(told)
    assert (told.nets, told.modes, told.rounds) == (["resnet50"], ["default"], 3)
    unsaid = argparse.Namespace(nets=None, modes=None, rounds=None, fast=fast, device="cpu")
    command._fill_in(unsaid)
    assert ("compiled" in unsaid.modes, "default" in unsaid.modes) == (False, True)
    assert (unsaid.rounds, len(unsaid.nets)) == ((2, 1) if fast else (12, 5))
    gpu = argparse.Namespace(nets=None, modes=None, rounds=None, fast=fast, device="cuda", only=["growth"])
    command._fill_in(gpu)
    assert (gpu.only, "keras-lora" in gpu.modes) == (["methods"], False)


def test_rows_of_another_source_or_settings_are_passed_over(load: Load, tmp_path: Path):
    store = load("store").Store
    first = store(tmp_path, {"rounds": 2}, "old")
    first.add("methods", "a", {"n": 1}, own=True)
    first.add("methods", "b", {"n": 2}, own=False)
    with (tmp_path / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"mark": "cut o')
    assert first.read("methods") == {"a": {"n": 1}, "b": {"n": 2}}
    assert store(tmp_path, {"rounds": 2}, "new").read("methods") == {"b": {"n": 2}}
    assert store(tmp_path, {"rounds": 3}, "old").read("methods") == {}
    first.forget()
    assert first.read("methods") == {}


def row(net: str, mode: str, ratios: list[float], *, saved: int = 50, merged: list[float] | None = None) -> Any:
    of_baseline = {"saved_bytes": 100, "memory_bytes": 100, "operations": 100, "seconds": 1.0}
    return {"net": net, "mode": mode, "ratios": ratios, "saved_bytes": saved, "of_baseline": of_baseline} | (
        {"inference_ratios": merged} if merged else {}
    )


def test_verdicts_compare_medians_with_what_is_wanted(load: Load):
    methods = [row("resnet18", "default", [0.7, 0.784, 0.9], saved=61, merged=[0.96]), row("resnet50", "lean", [0.81])]
    content = {"methods": methods, "prefix": []}
    found = {(each.figure, each.net): each for each in load("summary").verdicts(content)}
    assert found["default mode: step time", "resnet18"].met  # 0.78 where two digits are shown
    assert not found["default mode: saved activations", "resnet18"].met
    assert not found["lean: step time", "resnet50"].met
    assert not found["merged inference", "resnet18"].met
    assert found["default mode: step time", "resnet50"].found is None


def test_prefix_is_measured_against_the_faster_full_fine_tuning(load: Load):
    line = {"net": "resnet50", "size": 112, "cached_seconds": [1.0], "full_seconds": [10.0], "plain_seconds": [8.0]}
    larger = line | {"size": 224, "full_seconds": [4.0]}
    content = {"methods": [], "prefix": [line, larger]}
    found = [each for each in load("summary").verdicts(content) if each.figure.startswith(load("summary").PREFIX)]
    assert [(each.figure.split(", ")[1], each.net, each.found, each.met) for each in found] == [
        ("112 pixels", "resnet50", 1 / 8, True),
        ("224 pixels", "resnet50", 1 / 4, False),
    ]


def test_duel_is_lost_only_where_quartiles_are_apart(load: Load):
    methods = [
        row("resnet18", "default", [1.0, 1.1, 1.2]),
        row("resnet18", "peft-lora", [0.9, 0.91, 0.92]),
        row("resnet18", "loralib", [1.0, 1.12, 1.3]),
        row("resnet50", "default", [0.5]),
        row("resnet50", "peft-lora", [0.9]),
    ]
    found = [(each.net, each.rival, each.verdict) for each in load("summary").duels({"methods": methods})]
    assert found == [
        ("resnet18", "peft-lora", "slower"),
        ("resnet18", "loralib", "no difference seen"),
        ("resnet50", "peft-lora", "faster"),
    ]


@pytest.mark.skipif(not PAGE.is_file(), reason="the benchmark was not run yet")
def test_committed_page_is_what_the_committed_results_give(tmp_path: Path):
    (tmp_path / "training_cost.json").write_bytes(PAGE.with_suffix(".json").read_bytes())
    result = run("page", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / PAGE.name).read_bytes() == PAGE.read_bytes()
    plots = {path.name for path in (tmp_path / PAGE.stem).iterdir()}
    assert plots == {path.name for path in (PAGE.parent / PAGE.stem).iterdir()}


@pytest.mark.slow
def test_page_of_a_gpu_is_one_of_its_own_and_says_which_gpu(load: Load, tmp_path: Path):
    content = json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))
    content |= {"machine": content["machine"] | {"gpu": "Some GPU"}, "prefix": [], "loader": [], "growth": {}}
    load("page").write_page(content, tmp_path)
    assert not (tmp_path / PAGE.name).exists()
    page = (tmp_path / "training_cost_gpu.md").read_text(encoding="utf-8")
    assert page.startswith("# What training costs on a GPU")
    assert "Some GPU, 2 cores" in page
    assert "resident size" not in page
    assert "Figures to reach" not in page  # those are of a CPU
    assert (tmp_path / "training_cost_gpu" / "time.png").is_file()


def test_cells_of_a_gpu_are_larger_and_on_it(load: Load):
    cells = [
        cell
        for group in load("plan").method_groups(["resnet18"], ["full"], fast=False, device="cuda")
        for cell in group
    ]
    assert [(cell.device, cell.batch, cell.size) for cell in cells] == [("cuda", 64, 224)]


def test_trial_runs_to_its_page_and_goes_on_where_it_stopped(tmp_path: Path):
    words = ["--fast", "--threads", "1", "--only", "methods,growth,loader"]
    words += ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    result = run(*words)
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "out" / "training_cost.json").read_text(encoding="utf-8"))
    rows = {line["mode"]: line for line in content["methods"]}
    assert list(rows) == ["full", "full-channels-last", "head", "default"]
    assert all(len(line["ratios"]) == 2 for line in rows.values())
    assert rows["head"]["trainable"] < rows["default"]["trainable"] < rows["full"]["trainable"]
    assert [line["rank"] for line in content["growth"]["rank"]] == [1]
    assert content["loader"][0]["served"].keys() == {"jpeg", "png"}
    page = (tmp_path / "out" / "training_cost.md").read_text(encoding="utf-8")
    assert "The numbers mean nothing." in page
    assert all((tmp_path / "out" / "training_cost" / f"{name}.png").is_file() for name in ("time", "growth"))

    again = run(*words, "--only", "methods", "--modes", "full,head")
    assert again.returncode == 0, again.stderr
    assert "resnet18" not in again.stdout  # nothing was measured
    kept = json.loads((tmp_path / "out" / "training_cost.json").read_text(encoding="utf-8"))["methods"]
    assert kept == [rows["full"], rows["head"]]
