"""Run in a mount namespace of its own: trainings on disks that are small, full, read-only or limited; prints JSON."""

import contextlib
import io
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import convpeft
from convpeft.cli import main
from convpeft.training.checkpoints import read_checkpoint
from tiny import files_below, recipe, write_images


class Steps:
    """Counts what a training does, and acts once."""

    def __init__(self, act=None) -> None:
        self.steps, self.act = 0, act

    def step(self, *_: object) -> None:
        self.steps += 1

    def epoch(self, row: Any) -> None:
        if self.act is not None and row.epoch == 2:
            self.act()


def disk(root: Path, name: str, megabytes: int) -> Path:
    place = root / name
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    subprocess.run(command, check=True)
    return place


def attempt(values: dict[str, Any], *, resume: bool = False, act=None) -> dict[str, Any]:
    watcher, out = Steps(act), Path(values["out"])
    try:
        convpeft.train(values, resume=resume, watcher=watcher)
        error = None
    except convpeft.ConvpeftError as caught:
        error = f"{type(caught).__name__}: {caught}"
    return {"error": error, "steps": watcher.steps, "left": sorted(files_below(out)) if out.exists() else None}


def command(*words: object) -> dict[str, Any]:
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            return {"status": end.code, "said": told.getvalue()}


def fill(place: Path) -> None:
    with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as stream:
        while stream.write(bytes(4096)):
            pass


def run(root: Path) -> dict[str, Any]:
    images = write_images(root / "images")
    told: dict[str, Any] = {}
    small = disk(root, "small", 8)
    told["small"] = attempt(recipe(images, small / "run"))
    words = ["--model", "small-cnn", "--data", f"folder:{images}", "--rank", "2"]
    told["command"] = command("train", *words, "--out", small / "run")

    whole = disk(root, "whole", 64)
    convpeft.train(recipe(images, whole / "run", train__epochs=4))
    large = disk(root, "large", 64)
    values = recipe(images, large / "run", train__epochs=4)
    told["filled"] = attempt(values, act=lambda: fill(large))
    found = read_checkpoint(large / "run" / "checkpoints" / "last")
    told["filled"]["kept epochs"] = None if found is None else len(found.facts["history"])
    told["still full"] = attempt(values, resume=True)
    (large / "filler").unlink()
    told["freed"] = attempt(values, resume=True)
    adapters = [(place / "run" / "adapter" / "adapter_model.safetensors").read_bytes() for place in (whole, large)]
    told["same bytes"] = adapters[0] == adapters[1]

    fixed = disk(root, "fixed", 64)
    shutil.copytree(large / "run", fixed / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(fixed)], check=True)
    told["read-only"] = attempt(recipe(images, fixed / "new"))
    told["read-only, resumed"] = attempt(values | {"out": str(fixed / "run")}, resume=True)

    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, resource.RLIM_INFINITY))
    told["limited"] = attempt(recipe(images, whole / "limited"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    told["unlimited"] = attempt(recipe(images, whole / "limited", train__epochs=1))
    return told


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]))))  # noqa: T201
