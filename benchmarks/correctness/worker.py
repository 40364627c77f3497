"""Measure one method of one library, one line of JSON a network or layer; the command starts it as a process."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ |= {"HF_HUB_OFFLINE": "1", "KERAS_BACKEND": "torch", "KERAS_TORCH_DEVICE": "cpu"}


def main() -> None:
    name, method, draws, numbers = sys.argv[1], sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    with tempfile.TemporaryDirectory() as home:
        os.environ["KERAS_HOME"] = home
        import torch
        from draws import read_geometry, read_plan  # puts the tests on the path

        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        library = importlib.import_module(f"with_{name}").library()
        from measures import LayerMeasures, NetMeasures

        drawn = json.loads(draws.read_text(encoding="utf-8"))
        for kind, number in numbers:
            print(json.dumps({"begin": [kind, number]}), file=answers, flush=True)
            started = time.perf_counter()
            if kind == "nets":
                record = NetMeasures(library, method, read_plan(drawn[kind][number]), number).run()
            else:
                record = LayerMeasures(library, method, read_geometry(drawn[kind][number]), number).run()
            line = {"kind": kind, "number": number, "seconds": round(time.perf_counter() - started, 3)} | record
            print(json.dumps(line), file=answers, flush=True)


if __name__ == "__main__":
    main()
