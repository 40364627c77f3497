"""Measure the promises and write docs/promises.md.

    python benchmarks/promises/run.py [--fast] [--group NAME ...] [--only ID ...] [--again] [--jobs N]
    python benchmarks/promises/run.py page

What is measured is kept test by test in .promises/, so that an interrupted measurement goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from page import PAGE, render
from results import FORMS, HERE, ROOT, promises, read_lines, source_digest, update

STATE = ROOT / ".promises"
PROFILE = {"full": "full", "fast": "quick"}


def measure(form: str, ids: list[str], *, jobs: int, again: bool, keep: bool) -> int:
    """Run the tests that are not done yet, and sum up all; the exit status of pytest."""
    STATE.mkdir(exist_ok=True)
    record, source = STATE / f"{form}.jsonl", source_digest()
    done = [
        line["test"]
        for line in read_lines(record).values()
        if not again and line["outcome"] != "failed" and (keep or line["source"] == source)
    ]
    listed = STATE / "done.txt"
    listed.write_text("\n".join(done), encoding="utf-8")
    if done:
        print(f"{len(done)} tests are measured already and left out; --again measures them anew.", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "record", f"--hypothesis-profile={PROFILE[form]}"]
    command += ["-n", str(jobs), "--dist", "worksteal", "--timeout=0" if form == "full" else "--timeout=300"]
    command += [f"--promises={','.join(ids)}", f"--promises-done={listed}"]
    command += [f"--promises-record={record}", f"--promises-source={source}", "tests"]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
    paths = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    status = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, check=False).returncode
    versions = {name: version(name) for name in ("torch", "numpy")}
    lines = {test: line for test, line in read_lines(record).items() if keep or line["source"] == source}
    update(form, lines, ids, versions)
    return 0 if status == 5 else status  # 5: nothing was left to run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = promises()
    parser.add_argument("what", nargs="?", choices=("measure", "page"), default="measure")
    parser.add_argument("--fast", action="store_true", help="the reduced form, under five minutes")
    parser.add_argument("--group", nargs="+", choices=sorted({each.group for each in every}), help="default: all")
    parser.add_argument("--only", nargs="+", metavar="ID", help="some promises")
    parser.add_argument("--again", action="store_true", help="measure what is measured already, too")
    parser.add_argument("--keep", action="store_true", help="count what was measured of an earlier source as done")
    parser.add_argument("--jobs", type=int, default=2, help="test processes at once")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page (docs/promises.md)")
    asked = parser.parse_args()
    known = {each.id for each in every}
    if unknown := sorted(set(asked.only or []) - known):
        parser.error(f"--only: there is no promise {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    ids = [
        each.id
        for each in every
        if (not asked.group or each.group in asked.group) and (not asked.only or each.id in asked.only)
    ]
    status = 0
    if asked.what == "measure":
        form = FORMS[1] if asked.fast else FORMS[0]
        status = measure(form, ids, jobs=asked.jobs, again=asked.again, keep=asked.keep)
    page: Path = asked.out
    page.write_text(render(), encoding="utf-8")
    print(f"Page: {page.relative_to(Path.cwd()) if page.is_relative_to(Path.cwd()) else page}")
    return status


if __name__ == "__main__":
    sys.exit(main())
