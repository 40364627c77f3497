"""Fuzz every reader for its share of the time and print a table: reader, executions, crashes.

    python fuzz/run.py --seconds 600 [--reader NAME] [--json FILE]

Inputs that crash a reader stay in fuzz/crashes; run one again with
`python fuzz/fuzz_readers.py --reader NAME fuzz/crashes/NAME-crash-...`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from make_corpus import make_corpus

HERE = Path(__file__).resolve().parent
CRASHES = HERE / "crashes"
_UNITS = re.compile(r"^stat::number_of_executed_units:\s*(\d+)|^#(\d+)\s", re.MULTILINE)
_LEAST = 3.0  # seconds that are worth a start
_LIMITS = ("-timeout=10", "-rss_limit_mb=3000", "-max_len=131072", "-print_final_stats=1", "-verbosity=1")


def main() -> int:
    """Run, print, write; the status is 1 if anything crashed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="in all; the default is ten minutes")
    parser.add_argument("--reader", action="append", help="this one only; may be given several times")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_corpus(Path(folder))
        names = given.reader or sorted(each.name for each in Path(folder).iterdir())
        rows = [fuzz(name, Path(folder) / name, given.seconds / len(names), given.seed) for name in names]
    show(rows)
    executions, crashes = (sum(row[key] for row in rows) for key in ("executions", "crashes"))
    if given.json:
        facts = {
            "seconds": round(sum(row["seconds"] for row in rows)),
            "executions": executions,
            "crashes": crashes,
            "python": platform.python_version(),
            "readers": rows,
        }
        given.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 1 if crashes else 0


def fuzz(name: str, corpus: Path, seconds: float, seed: int) -> dict:
    """Fuzz one reader; a crash ends a process, so the rest of the time goes to another one with another seed."""
    CRASHES.mkdir(exist_ok=True)
    executions, crashes, spent = 0, 0, 0.0
    while (left := seconds - spent) > _LEAST or not spent:
        told = run_once(name, corpus, left, seed + crashes)
        spent += told[2]
        counts = [int(a or b) for a, b in _UNITS.findall(told[1])]
        executions += max(counts, default=0)
        if told[0] == 0:
            break
        crashes += 1
        reason = [line for line in told[1].splitlines() if re.match(r"\s*(\w+\.)*\w*(Error|Exception|Warning)\b", line)]
        sys.stdout.write(f"{name}: crash: {(reason or told[1].splitlines()[-3:])[-1][:300]}\n")
        sys.stdout.flush()
    return {
        "reader": name,
        "executions": executions,
        "crashes": crashes,
        "seconds": round(spent, 1),
    }


def run_once(name: str, corpus: Path, seconds: float, seed: int) -> tuple[int, str, float]:
    """One process of libFuzzer, until it crashes or its time is over: status, output, seconds without the start."""
    command = [sys.executable, str(HERE / "fuzz_readers.py"), "--reader", name]
    command += [*_LIMITS, f"-max_total_time={max(1, round(seconds))}", f"-seed={seed}"]
    command += [f"-artifact_prefix={CRASHES}/{name}-", str(corpus)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    began = time.monotonic()
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, errors="replace")
    told = ended.stdout + ended.stderr
    started = re.search(r"^STARTED (\S+)$", told, re.MULTILINE)
    return ended.returncode, told, time.monotonic() - (float(started[1]) if started else began)


def show(rows: list[dict]) -> None:
    """Print the table."""
    sys.stdout.write(f"{'reader':<28}{'executions':>12}{'crashes':>9}{'seconds':>9}\n")
    for row in rows:
        line = f"{row['reader']:<28}{row['executions']:>12,}{row['crashes']:>9}{row['seconds']:>9}\n"
        sys.stdout.write(line)


if __name__ == "__main__":
    sys.exit(main())
