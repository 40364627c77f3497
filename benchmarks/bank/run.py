"""Many adapters on one backbone: a bank against merging on demand and against a model for each adapter.

python benchmarks/bank/run.py                   # measure, then write docs/results/bank.json and the page
python benchmarks/bank/run.py --fast --out DIR  # does everything work? The numbers mean nothing
python benchmarks/bank/run.py page              # the page from the JSON file
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import convpeft

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

NETS = {"resnet18": ("torchvision/resnet18", 112), "resnet20": ("cifar-resnet/20", 32)}
COUNTS, BATCH, ROUNDS, RANK, CLASSES = (1, 8, 64), 64, 7, 4, 10
TOLERANCE = 1e-5  # of the largest output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("run", "page"), default="run")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fast", action="store_true", help="one small network, four adapters, two rounds")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "results", help="of JSON file and page")
    told = parser.parse_args()
    told.out.mkdir(parents=True, exist_ok=True)
    path = told.out / "bank.json"
    if told.command == "run":
        path.write_text(json.dumps(measure(told), indent=1) + "\n", encoding="utf-8")
    from page import write_page

    write_page(json.loads(path.read_text(encoding="utf-8")), told.out / "bank.md")


def measure(told: argparse.Namespace) -> dict[str, Any]:
    """Every network with every number of adapters."""
    torch.set_num_threads(told.threads)
    nets = ["resnet20"] if told.fast else list(NETS)
    counts, batch, rounds = ((1, 4), 8, 2) if told.fast else (COUNTS, BATCH, told.rounds)
    rows = []
    for net in nets:
        for count in counts:
            print(f"{net}, {count} adapters", flush=True)
            rows.append({"net": net, "adapters": count} | measure_one(net, count, batch, rounds))
    return {
        "trial": told.fast,
        "batch": batch,
        "rank": RANK,
        "rounds": rounds,
        "threads": told.threads,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "rows": rows,
    }


def measure_one(net: str, count: int, batch: int, rounds: int) -> dict[str, Any]:
    """Images a second and bytes held, of each way, the ways in turn."""
    torch.manual_seed(0)
    source, size = NETS[net]
    base = convpeft.load_model(source, num_classes=CLASSES, pretrained=False).eval()
    images = torch.randn(batch, 3, size, size)
    names = [str(number % count) for number in range(batch)]
    with tempfile.TemporaryDirectory() as folder:
        paths = {str(number): save(base, Path(folder) / str(number), number) for number in range(count)}
        bank = convpeft.Bank(base, capacity=count)
        for name, path in paths.items():
            bank.add(name, path)
        adapted = {name: convpeft.load(shared(base), path).eval() for name, path in paths.items()}
    merged = {name: convpeft.merged(model) for name, model in adapted.items()}
    rows_of = {name: [row for row, other in enumerate(names) if other == name] for name in paths}

    def each(run: Callable[[str, Tensor], Tensor]) -> Tensor:
        output = torch.empty(batch, CLASSES)
        for name, rows in rows_of.items():
            output[rows] = run(name, images[rows])
        return output

    ways: dict[str, Callable[[], Tensor]] = {
        "mixed": lambda: torch.stack(bank.run(images, names)),
        "one call an adapter": lambda: each(lambda name, given: bank.run(given, name)),
        "merged on demand": lambda: each(lambda name, given: convpeft.merged(adapted[name])(given)),
        "a model each": lambda: each(lambda name, given: merged[name](given)),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    with torch.no_grad():
        expected = ways["a model each"]()
        for way, run in ways.items():  # also the first call, which takes longer
            error = float((run() - expected).abs().max() / expected.abs().max())
            assert error <= TOLERANCE, (way, error)
        for turn in range(rounds):
            order = list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]
            for way in order:
                began = time.perf_counter()
                ways[way]()
                times[way].append(time.perf_counter() - began)
    own, adapters = held([base]), held(bank._parts.values())
    memory = {
        "mixed": own + adapters,
        "one call an adapter": own + adapters,
        "merged on demand": own + adapters + held([merged["0"]]),
        "a model each": held(merged.values()),
    }
    return {
        "ways": {
            way: {"images_per_s": batch / statistics.median(times[way]), "seconds": times[way], "bytes": memory[way]}
            for way in ways
        }
    }


def save(base: nn.Module, path: Path, seed: int) -> Path:
    """A LoRA of all convolutions and a new head, no two alike."""
    torch.manual_seed(seed)
    model = convpeft.attach(shared(base), "lora", rank=RANK, num_classes=CLASSES, include=["conv"])
    with torch.no_grad():
        for parameter in convpeft.trainable_parameters(model):
            parameter.add_(0.02 * torch.randn_like(parameter))
    return convpeft.save(model, path)


def shared(model: nn.Module) -> nn.Module:
    """The modules once more around the same tensors."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]})


def held(things: Iterable[Any]) -> int:
    """Bytes of all tensors in modules, or in mappings to tuples of modules."""
    modules = [m for each in things for m in ([each] if isinstance(each, nn.Module) else sum(each.values(), ()))]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}.values())


if __name__ == "__main__":
    main()
