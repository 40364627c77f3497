"""`convpeft export`: write a run as ONNX, ExecuTorch or plain weights, checked against PyTorch before it is left."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convpeft.console import print_json, say, warnings_as_lines
from convpeft.errors import DataError, OptionError, RunError, nearest, one_line

if TYPE_CHECKING:
    from torch import Tensor

    from convpeft.data import Dataset
    from convpeft.evaluation.inference import Classifier

_SUFFIXES = {"onnx": ".onnx", "executorch": ".pte", "torch": ".safetensors"}
_CHECKED_ON = 12  # images: batches of 1, 3 and 8
_WORST = 3  # classes to name


@dataclass(frozen=True)
class Wish:
    """What was asked for on the command line."""

    to: str
    out: Path
    base: bool = False
    quantize: str | None = None
    dynamic_size: bool = False
    calibration_images: int = 128
    max_drop: float = 0.01

    def __post_init__(self) -> None:
        """Refuse what does not go together, before anything is loaded."""
        if self.to not in _SUFFIXES:
            raise OptionError(f"--to {self.to!r} is no format to export to. {nearest(self.to, (*_SUFFIXES, 'patch'))}")
        if self.out.suffix != _SUFFIXES[self.to]:
            raise OptionError(
                f"--out {self.out}: expected a name that ends in {_SUFFIXES[self.to]} for --to {self.to}."
            )
        if self.out.exists():
            raise OptionError(f"--out {self.out}: exists already. Give another name.")
        if self.quantize not in (None, "int8"):
            raise OptionError(f"--quantize {self.quantize!r}: expected int8. Leave it out for a float file.")
        if self.base and (self.to != "onnx" or self.quantize):
            raise OptionError("--base writes a float ONNX file for patches. Leave --to and --quantize out.")
        if self.quantize and self.to == "torch":
            raise OptionError("--quantize int8 goes with --to onnx or executorch. Leave it out for plain weights.")
        if self.dynamic_size and self.to != "onnx":
            raise OptionError(f"--dynamic-size goes with --to onnx, not {self.to}. Leave it out.")


def export_map(path: Path, *, as_json: bool) -> None:
    """Write the map that `convpeft patch` needs on a device without torch beside an adapter."""
    from convpeft.deployment.graphs import need

    need("onnx", "onnxscript", extra="onnx")
    from convpeft.deployment.patch_map import write_patch_map

    written = write_patch_map(path)
    size = written.stat().st_size
    if as_json:
        print_json({"file": str(written), "to": "patch", "run": str(path), "bytes": size})
    else:
        say(f"{written}: {size:,} bytes; send it with the adapter, then run convpeft patch on the device")


def export_run(path: Path, wish: Wish, *, data: str | None, weights: Path | None, force: bool, as_json: bool) -> None:
    """Export a run or an adapter, and say how far the file is from PyTorch."""
    from convpeft.adapter_file import find_adapter
    from convpeft.deployment.graphs import need
    from convpeft.evaluation.inference import load_classifier

    if wish.to == "onnx":
        need("onnx", "onnxscript", "onnxruntime", extra="onnx")
    elif wish.to == "executorch":
        need("executorch.exir", "torchao", extra="executorch")
    find_adapter(path)
    dataset, split = images_of(path, data, whole=wish.quantize is None)
    with warnings_as_lines() as warned:
        classifier = load_classifier(path, weights=weights, force=force)
    classifier = dataclasses.replace(classifier, model=classifier.model.cpu())
    notes = {"forced": json.dumps(warned, ensure_ascii=False)} if force else {}
    images = _prepared(dataset, split, classifier, _CHECKED_ON)
    facts: dict[str, Any] = {"file": str(wish.out), "to": wish.to, "run": str(path), "data": dataset.spec}
    try:
        facts |= _export(classifier, wish, dataset, split, images, notes)
    except OSError as error:
        why = one_line(error)
        raise RunError(f"--out {wish.out}: cannot be written ({why}). Free space or give another name.") from None
    facts |= notes
    if as_json:
        print_json(facts)
    else:
        _tell(facts)


def images_of(path: Path, data: str | None, *, whole: bool) -> tuple[Dataset, str]:
    """The images to check with and the split that they are from: the run's own test split, or those of --data.

    Raises:
        OptionError: If there is no run and no --data.
        DataError: If the images cannot be had.
    """
    from convpeft.data import load_data
    from convpeft.training.preparing import load_recipe_data
    from convpeft.training.recipe import make_recipe, read_recipe

    file = path / "recipe.toml"
    recipe = make_recipe(read_recipe(file), where=str(file)) if file.is_file() else None
    if data is not None and (recipe is None or data != recipe.data.source):
        dataset = load_data(data, whole=whole)
        return dataset, "test" if len(dataset.test) else "all"
    if recipe is None:
        raise OptionError(f"{path}: is no run, so it tells no images to check the export with. Give --data.")
    try:
        return load_recipe_data(recipe), "test"
    except DataError as error:
        raise DataError(f"{path}: its images cannot be had, to check the export with ({error}) Give --data.") from None


def _prepared(dataset: Dataset, split: str, classifier: Classifier, count: int) -> Tensor:
    """So many images of a split, spread over it, prepared for the model."""
    import numpy as np
    import torch

    from convpeft.data import ImageBatches

    part = dataset.split(split)
    chosen = np.unique(np.linspace(0, len(part) - 1, min(count, len(part))).round().astype(np.int64))
    batches = ImageBatches(part.subset(chosen), classifier.preprocessing, batch_size=32)
    return torch.cat([images for images, _, _ in batches])


def _export(
    classifier: Classifier, wish: Wish, dataset: Dataset, split: str, images: Tensor, notes: dict[str, str]
) -> dict[str, Any]:
    from convpeft.deployment.executorch import export_executorch
    from convpeft.deployment.onnx_base import export_base
    from convpeft.deployment.onnx_merged import export_onnx
    from convpeft.deployment.weights import export_weights

    if wish.quantize:
        return _export_int8(classifier, wish, dataset, split, images, notes)
    if wish.to == "torch":
        return _facts(export_weights(classifier, wish.out, images=images, notes=notes))
    if wish.to == "executorch":
        return _facts(export_executorch(classifier, wish.out, images=images))
    if wish.base:
        found = export_base(
            classifier.model,
            wish.out,
            images=images,
            preprocessing=classifier.preprocessing,
            dynamic_size=wish.dynamic_size,
        )
        return _facts(found) | {"size": wish.out.stat().st_size}
    return _facts(export_onnx(classifier, wish.out, images=images, dynamic_size=wish.dynamic_size, notes=notes))


def _export_int8(
    classifier: Classifier, wish: Wish, dataset: Dataset, split: str, images: Tensor, notes: dict[str, str]
) -> dict[str, Any]:
    """Quantise on training images, and measure before and after on the test split."""
    from convpeft.deployment.executorch import ProgramNetwork, export_executorch, load_program
    from convpeft.deployment.onnx_file import load_onnx
    from convpeft.deployment.onnx_merged import describe, export_onnx
    from convpeft.deployment.quantizing import quantize_onnx

    if not len(dataset.train):
        raise DataError(f"{dataset.spec}: has no training images to calibrate with. Give --data with some.")
    calibration = _prepared(dataset, "train", classifier, wish.calibration_images)
    facts: dict[str, Any] = {"calibration_images": len(calibration)}
    with _beside(wish.out) as made:
        if wish.to == "executorch":
            facts |= _facts(export_executorch(classifier, made, images=images, calibration=calibration.split(8)))
            after = dataclasses.replace(classifier, model=ProgramNetwork(load_program(made)))
        else:
            plain = made.with_name("float.onnx")
            facts |= _facts(export_onnx(classifier, plain, images=images, dynamic_size=wish.dynamic_size))
            told = describe(classifier, "int8") | {f"convpeft.{key}": value for key, value in notes.items()}
            facts["size"] = quantize_onnx(plain, made, calibration.split(8), metadata=told)
            after = load_onnx(made)
        measured = compare_accuracy(classifier, after, dataset, split, max_drop=wish.max_drop)
        if wish.to == "onnx":
            _note(made, {"convpeft.accuracy": json.dumps(measured | {"calibration_images": len(calibration)})})
        _put(made, wish.out)
    return facts | {"accuracy": measured}


def compare_accuracy(
    before: Classifier, after: Classifier, dataset: Dataset, split: str, *, max_drop: float
) -> dict[str, Any]:
    """Accuracy of two classifiers on one split, and the classes that lost most."""
    import numpy as np

    from convpeft.evaluation.inference import evaluate_split

    (old, classes), (new, _) = (evaluate_split(each, dataset, split) for each in (before, after))
    drop = float(old.correct.mean() - new.correct.mean())
    losses = [
        (float(old.correct[mine].mean() - new.correct[mine].mean()), name, int(mine.sum()))
        for number, name in enumerate(classes)
        for mine in [old.labels == number]
        if mine.any()
    ]
    worst = [
        {"class": name, "drop": loss, "images": number}
        for loss, name, number in sorted(losses, key=lambda each: -each[0])[:_WORST]
        if loss > 0
    ]
    return {
        "split": split,
        "images": len(old.labels),
        "before": float(np.mean(old.correct)),
        "after": float(np.mean(new.correct)),
        "drop": drop,
        "max_drop": max_drop,
        "too_large": drop > max_drop,
        "worst": worst,
    }


@contextlib.contextmanager
def _beside(out: Path) -> Generator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / f"int8{out.suffix}"


def _put(made: Path, out: Path) -> None:
    from convpeft.writing import whole_file

    with whole_file(out) as work:
        shutil.copyfile(made, work)


def _note(file: Path, metadata: dict[str, str]) -> None:
    import onnx

    graph = onnx.load(file, load_external_data=False)
    for key, value in metadata.items():
        graph.metadata_props.add(key=key, value=value)
    file.write_bytes(graph.SerializeToString(deterministic=True))


def _facts(found: Any) -> dict[str, Any]:
    told = dataclasses.asdict(found)
    return told if "difference" in told else {"difference": told}


def _tell(facts: dict[str, Any]) -> None:
    from convpeft.deployment.comparing import Difference

    before = "before quantisation " if facts["to"] == "onnx" and "accuracy" in facts else ""
    parts = [f"{facts['file']}: {facts['size']:,} bytes", before + str(Difference(**facts["difference"]))]
    if facts.get("folded") or facts.get("kept"):
        parts.append(f"{facts['folded']} norms folded, {facts['kept']} kept")
    say(", ".join(parts))
    for name, what in (("absorbed", "moved into the norm behind it"), ("added", "is new: the base has no such key")):
        for key in facts.get(name, ()):
            say(f"{key}: {what}")
    accuracy = facts.get("accuracy")
    if accuracy is None:
        return
    say(
        f"accuracy on {accuracy['images']:,} images ({accuracy['split']}): {accuracy['before']:.2%} before, "
        f"{accuracy['after']:.2%} in eight bits; calibrated on {facts['calibration_images']} training images"
    )
    if accuracy["too_large"]:
        worst = ", ".join(f"{each['class']} -{each['drop']:.1%}" for each in accuracy["worst"])
        say(f"warning: accuracy drops by more than {accuracy['max_drop']:.1%}. Most lost: {worst}")
