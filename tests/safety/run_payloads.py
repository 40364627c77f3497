"""Give every payload to every place that takes a name, under an audit hook; run as a script by test_no_path_escapes."""

from __future__ import annotations

import gzip
import json
import os
import sys
import tarfile
import tomllib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

import convpeft
import convpeft.models.timm_models
import convpeft.models.torchvision_models
from convpeft.adapter_file import CONFIG, WEIGHTS
from convpeft.commands.evaluating import slug as slug_of
from convpeft.data.cifar import CIFAR100
from convpeft.reporting import write_confusion_csv
from convpeft.training.recipe import make_recipe
from safety import samples
from safety.auditing import Watch
from safety.payloads import payloads
from safety.readers import READERS, _saved, network, sign_description

Place = Callable[[str], object]


def places(root: Path) -> dict[str, Place]:
    """Every place inside a file, or in memory, that takes a name; each call reads or writes one."""
    runs = {name: reader.opened(root / name) for name, reader in READERS.items()}
    description = json.loads(_saved("plain")[CONFIG])
    weights = _saved("plain")[WEIGHTS]
    size = int.from_bytes(weights[:8], "little")
    header, body = json.loads(weights[8 : 8 + size]), weights[8 + size :]
    batch, members = samples.cifar_batches()["protocol-2"], samples.npz_members()

    def described(**changes: Any) -> object:
        return runs["adapter-description-signed"](sign_description(json.dumps(description | changes).encode()))

    def tensor(name: str) -> object:
        other = {name if key == next(iter(header)) else key: value for key, value in header.items()}
        packed = json.dumps(other).encode()
        return runs["adapter-tensors-signed"](len(packed).to_bytes(8, "little") + packed + body)

    def member(name: str, kind: bytes | None = None) -> object:
        info = tarfile.TarInfo(name.replace("\0", "") if kind is None else f"{CIFAR100.folder}/train")
        info.size = len(batch) if kind is None else 0
        info.type, info.linkname = kind or tarfile.REGTYPE, name.replace("\0", "")
        content: dict[str, Any] = {f"{CIFAR100.folder}/test": batch}
        packed = samples.tarred(content | ({info.name: batch} if kind is None else {"x": info}))
        return runs["cifar-archive"](gzip.compress(packed, 1))

    def adapter_name(name: str) -> object:
        model = convpeft.attach(network(), "lora", rank=1, include=["conv"], name=name)
        place = convpeft.save(model, root / "named" / "adapter", name=name)
        again = convpeft.load(network(), place, name=name)
        convpeft.set_active(again, [name])
        convpeft.merge(again, [name])
        return "legal"

    def class_name(name: str) -> object:
        model = convpeft.attach(network(), "lora", rank=1, include=["conv"], num_classes=2)
        place = convpeft.save(model, root / "classes" / "adapter", classes=[name, "another class"])
        return convpeft.load(network(), place)

    def confusion(name: str) -> None:
        write_confusion_csv(root / "confusion.csv", np.eye(2, dtype=np.int64), [name, "b"])
        text = (root / "confusion.csv").read_text(encoding="utf-8")
        assert all(c.isprintable() or c == "\n" for c in text.replace("\r\n", "\n")), name

    def recipe(name: str) -> None:
        made = make_recipe(
            {
                "model": {"source": name, "weights": name, "head": name},
                "data": {"source": name, "augment": name},
                "method": {"name": name, "include": [name]},
                "out": name,
                "warm_start": name,
            }
        )
        assert make_recipe(tomllib.loads(made.to_toml())) == made

    def slug(name: str) -> None:
        assert all(c.isalnum() or c in "-_" for c in slug_of(name))
        assert (root / "evaluation" / f"x{slug_of(name)}").resolve().parent == root / "evaluation"

    def row(name: str, label: str) -> object:
        text = StringIO()
        import csv

        csv.writer(text).writerows([("file", "class"), (name, label), ("a/x.png", "b")])
        return runs["table"](text.getvalue().encode("utf-8", "surrogatepass"))

    def built(**model: Any) -> object:
        whole = json.loads(_saved("built")[CONFIG])
        whole["model"] |= model
        return runs["adapter-classifier-signed"](json.dumps(whole).encode())

    return {
        "adapter name": adapter_name,
        "class name": class_name,
        "class name in a table of counts": confusion,
        "class name in a description": lambda name: described(classes=[name, "b"]),
        "method in a description": lambda name: described(method=name),
        "layer in a description": lambda name: described(parts=[p | {"path": name} for p in description["parts"]]),
        "part in a description": lambda name: described(parts=[p | {"part": name} for p in description["parts"]]),
        "base in a description": lambda name: built(source=name),
        "tensor": tensor,
        "member of a tar": member,
        "symbolic link in a tar": lambda name: member(name, tarfile.SYMTYPE),
        "hard link in a tar": lambda name: member(name, tarfile.LNKTYPE),
        "device in a tar": lambda name: member(name, tarfile.CHRTYPE),
        "member of an npz": lambda name: runs["npz"](samples.zipped(members | {name: members["val_images.npy"]})),
        "member of a zip": lambda name: runs["emnist-zip"](samples.zipped({name: b"x"})),
        "class name in an npz": lambda name: runs["npz"](
            samples.zipped(members | {"classes.npy": samples.npy(np.array([name or "x", "b"]))})
        ),
        "picture in a table": lambda name: row(name, "a"),
        "class in a table": lambda name: row("a/x.jpg", name),
        "image of another run": lambda name: runs["predictions"](f"image,label,predicted\n{name!r},a,b\n".encode()),
        "recipe": recipe,
        "word of an option": lambda name: runs["word"](os.fsencode(name) if "\ud800" not in name else b""),
        "evaluation": slug,
        "host in a lock": lambda name: runs["lock"](json.dumps({"pid": 1, "host": name, "boot": "b"}).encode()),
    }


def commands(root: Path, run: Path) -> dict[str, Callable[[str], list[str]]]:
    """Command lines that take a name; what they may touch is what they name."""
    return {
        "inspect": lambda name: ["inspect", "--", name],
        "predict": lambda name: ["predict", "--", str(run), name],
        "merge": lambda name: ["merge", str(run), f"--out={name}.safetensors"],
        "check": lambda name: ["check", f"--adapter={name}"],
        "evaluate": lambda name: ["evaluate", str(run), f"--data={name}"],
        "evaluate a folder": lambda name: ["evaluate", str(run), f"--data=folder:{name}"],
        "train": lambda name: ["train", "--dry-run", "--model=small-cnn", f"--data=npz:{name}", f"--out={name}"],
        "resume": lambda name: ["train", f"--resume={name}"],
        "method": lambda name: ["train", "--dry-run", "--model=small-cnn", "--data=glyphs:digits", f"--method={name}"],
    }


@contextmanager
def captured() -> Iterator[tuple[StringIO, StringIO]]:
    """Both streams of the command line."""
    from convpeft import console

    before, streams = (sys.stdout, sys.stderr, console.console.file), (StringIO(), StringIO())
    sys.stdout, sys.stderr = streams
    console.console.file = streams[0]
    try:
        yield streams
    finally:
        sys.stdout, sys.stderr, console.console.file = before


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file() and not file.is_symlink()}


def call(words: list[str]) -> str:
    """Run a command and say what is wrong with how it ended; nothing if nothing is."""
    from convpeft.cli import main

    with captured() as (_, errors):
        try:
            main(words)
        except SystemExit as ended:
            status = ended.code
        except BaseException as error:
            return f"{type(error).__name__}: {error}"[:200]
    told = errors.getvalue()
    lines = [line for line in told.splitlines() if line.startswith("convpeft: ")]
    if status not in (0, 1, 2) or "Traceback" in told or "See where with --debug" in told:
        return f"status {status}, {told[-300:]!r}"
    if status and (len(lines) != 1 or not lines[0].isprintable()):
        return f"status {status} with {len(lines)} lines, {told[-300:]!r}"
    return ""


def main(folder: Path, count: int) -> None:
    """Make a root and what is outside of it, and try."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    root, outside = folder / "root", folder / "outside"
    (outside / "pictures").mkdir(parents=True)
    (outside / "secret.txt").write_text("secret")
    (outside / "pictures" / "x.png").write_bytes(samples.pictures()["png"])
    work = root / "a" / "b" / "c"
    work.mkdir(parents=True)
    os.chdir(work)
    names = payloads(outside)[:: max(1, 200 // count)]
    taken, found = places(root), {"wrong": {}, "events": {}, "illegal": [], "payloads": len(names), "tries": 0}
    for place in taken.values():  # warm-up: what a first call imports is ours
        for name in ("x", "\0", "../x"):
            with suppress(Exception):
                place(name)
    watch, before = Watch(root, importable=("PIL.", "encodings.")), snapshot(outside)
    for where, place in taken.items():
        for name in names:
            with watch.armed() as events:
                try:
                    place(name)
                except convpeft.ConvpeftError as error:
                    if where == "adapter name":
                        found["illegal"].append(f"{name[:40]!r}: {error}")
                    if len(str(error).splitlines()) != 1:
                        found["wrong"][f"{where}: {name[:40]!r}"] = f"several lines: {error}"[:300]
                except Exception as error:
                    found["wrong"][f"{where}: {name[:40]!r}"] = f"{type(error).__name__}: {error}"[:300]
            found["tries"] += 1
            if events:
                found["events"][f"{where}: {name[:40]!r}"] = events[:3]
    run = root / "adapter-classifier-signed" / "adapter"
    (run / CONFIG).write_bytes(_saved("built")[CONFIG])
    for where, words in commands(root, run).items():
        for name in names:
            own = Path(f"{name}.safetensors") if where == "merge" else None
            if where == "merge" and name.startswith(("/dev", "/proc", "//", "~", "/")) and str(outside) not in name:
                continue  # writing there is what the caller asked for, and not wanted here
            wrong = call(words(name))
            if wrong:
                found["wrong"][f"convpeft {where}: {name[:40]!r}"] = wrong
            found["tries"] += 1
            if own is not None and "\0" not in name:  # exactly the file that was named
                with suppress(OSError):
                    own.unlink()
    found["changed"] = sorted(snapshot(outside).items() ^ before.items())
    found["changed"] = [name for name, _ in found["changed"]]
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]))
