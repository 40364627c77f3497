"""convpeft and its rivals under the same attack: measure what is missing, then write the results and the page.

python benchmarks/correctness/run.py                               # goes on where it stopped
python benchmarks/correctness/run.py --nets 30 --only convpeft,peft --methods lora,dora
python benchmarks/correctness/run.py page                          # the page from the JSON file
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path[:0] = [str(HERE), str(REPOSITORY / "tests")]

from roster import LIBRARIES, merges, methods_of, number_of, version_of, versions  # noqa: E402
from store import Lines  # noqa: E402

NETS = 300
START, PATIENCE = 180, 60  # seconds: until a worker answers first, and for one network or layer
NAME = "correctness"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("run", "page"), default="run")
    parser.add_argument("--nets", type=int, default=NETS, help=f"networks, and as many single layers ({NETS})")
    parser.add_argument("--only", type=_words, default=list(LIBRARIES), help="libraries, separated by commas")
    parser.add_argument("--methods", type=_words, default=[], help="methods, separated by commas; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--again", action="store_true", help="measure what is named anew, though it is there")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "runs" / NAME, help="where unfinished work is kept")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "docs" / "results", help="of JSON file and page")
    told = parser.parse_args()
    if unknown := [name for name in told.only if name not in LIBRARIES]:
        parser.error(f"there is no library {unknown[0]!r}; there are: {', '.join(LIBRARIES)}")
    if told.command == "run":
        measure(told)
    from page import show, write_page

    content = json.loads((told.results / f"{NAME}.json").read_text(encoding="utf-8"))
    write_page(content, told.results / f"{NAME}.md")
    if told.command == "run":
        show(content)


def measure(told: argparse.Namespace) -> None:
    """Every network and layer that the work folder does not have, and then the counts."""
    told.work.mkdir(parents=True, exist_ok=True)
    drawn = _drawn(told.work, told.nets)
    pairs = [
        (library, method)
        for library in told.only
        for method in methods_of(library)
        if (not told.methods or method in told.methods) and version_of(library)
    ]
    with ThreadPoolExecutor(told.jobs) as pool:
        list(pool.map(lambda pair: _complete(told, *pair, drawn), pairs))
    _write_results(told, drawn)


def _complete(told: argparse.Namespace, library: str, method: str, drawn: dict[str, list[Any]]) -> None:
    """Start workers until nothing is missing; what hangs or kills its worker is noted and passed over."""
    lines = _lines(told, library, method, drawn)
    if told.again:
        lines.forget()
    networks = LIBRARIES[library]["networks"]
    while missing := lines.missing(whole_networks=networks):
        print(f"{library} {method}: {len(missing)} to measure", flush=True)
        before = len(missing)
        _work(told.work / f"drawn-{told.nets}.json", library, method, missing, lines)
        if len(lines.missing(whole_networks=networks)) == before:
            raise SystemExit(f"{library} {method}: the worker does not start. Run worker.py by hand to see why.")


def _work(draws: Path, library: str, method: str, items: list[tuple[str, int]], lines: Lines) -> None:
    """One worker process over these items, until it is done, dies or hangs."""
    command = [sys.executable, str(HERE / "worker.py"), library, method, str(draws), json.dumps(items)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    answers: queue.Queue[str | None] = queue.Queue()
    errors: list[str] = []
    readers = [
        threading.Thread(target=lambda: [*map(answers.put, process.stdout or ()), answers.put(None)], daemon=True),
        threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True),
    ]
    for reader in readers:
        reader.start()
    begun: tuple[str, int] | None = None
    lost = ""
    while True:
        try:
            text = answers.get(timeout=PATIENCE if begun else START)
        except queue.Empty:
            lost = f"no answer in {PATIENCE} s"
            process.kill()
            break
        if text is None:
            break
        line = json.loads(text)
        if "begin" in line:
            begun = (line["begin"][0], line["begin"][1])
        else:
            begun = None
            lines.add(line)
    code = process.wait()
    if begun:
        lines.add({"kind": begun[0], "number": begun[1], "lost": lost or f"the process died with status {code}"})
    elif code:
        print("".join(errors[-5:]), file=sys.stderr, flush=True)


def _lines(told: argparse.Namespace, library: str, method: str, drawn: dict[str, list[Any]]) -> Lines:
    number = number_of(library, method, told.nets)
    share = {kind: values[:number] for kind, values in drawn.items()}
    return Lines(told.work, library, method, version_of(library) or "", share)


def _drawn(work: Path, nets: int) -> dict[str, list[Any]]:
    path = work / f"drawn-{nets}.json"
    if not path.is_file():
        subprocess.run([sys.executable, str(HERE / "draws.py"), str(path), str(nets), str(nets)], check=True)
    return json.loads(path.read_text(encoding="utf-8"))


def _write_results(told: argparse.Namespace, drawn: dict[str, list[Any]]) -> None:
    """Counts of every method that is complete for these draws, whichever this command was asked for."""
    from draws import SEED, digest, facts
    from measures import EVERY, IMAGES, RANKS
    from outcomes import TOLERANCE
    from summary import row_of

    from convpeft.reporting import write_whole

    rows, absent = [], []
    for library, about in LIBRARIES.items():
        for method in methods_of(library):
            lines = _lines(told, library, method, drawn)
            if lines.missing(whole_networks=about["networks"]):
                absent.append(f"{library} {method}")
                continue
            about_method = {"library": library, "method": method, "merges": merges(library, method)}
            rows.append(about_method | row_of(lines.read(), drawn))
    content = {
        "command": f"python benchmarks/correctness/run.py --nets {told.nets}",
        "nets": told.nets,
        "layers": len(drawn["layers"]),
        "seed": SEED,
        "digest of the draws": digest(drawn),
        "drawn": facts(drawn),
        "ranks": list(RANKS),
        "images": IMAGES,
        "gradients every": EVERY,
        "tolerance": TOLERANCE,
        "seconds for one network at most": PATIENCE,
        "versions": versions(),
        "rows": rows,
    }
    heads = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items() if key != "rows"]
    body = ",\n".join(json.dumps(row) for row in rows)
    told.results.mkdir(parents=True, exist_ok=True)
    text = "{\n" + ",\n".join(heads) + ',\n"rows": [\n' + body + "\n]\n}\n"
    write_whole(told.results / f"{NAME}.json", text.encode())
    if absent:
        print(f"not measured with {told.nets} networks, not in the results: {', '.join(absent)}", flush=True)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


if __name__ == "__main__":
    main()
