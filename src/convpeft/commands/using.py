"""`convpeft predict` and `convpeft merge`: use what was trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from convpeft.console import print_json, say, warnings_as_lines
from convpeft.errors import OptionError, RunError, one_line


def predict_images(
    path: Path, images: Sequence[Path], *, top: int, weights: Path | None, force: bool, as_json: bool
) -> None:
    """Classify images and print the answers."""
    from convpeft.evaluation.inference import classify, find_images, load_classifier

    found = find_images(images)
    with warnings_as_lines() as told:
        if path.suffix == ".onnx" and not path.is_dir():
            from convpeft.deployment.onnx_file import load_onnx

            if force or weights is not None:
                raise OptionError(f"{path}: holds its own network. Leave --weights and --force out.")
            classifier = load_onnx(path)
        else:
            classifier = load_classifier(path, weights=weights, force=force)
    answers = classify(classifier, found, top=top)
    if as_json:
        print_json(
            [
                {
                    "image": answer.image,
                    "top": [
                        {"class": name, "probability": sure}
                        for name, sure in zip(answer.classes, answer.probabilities, strict=True)
                    ],
                }
                | ({"forced": told} if force else {})
                for answer in answers
            ]
        )
        return
    for answer in answers:
        pairs = zip(answer.classes, answer.probabilities, strict=True)
        say(f"{answer.image}: " + ", ".join(f"{name} {sure:.1%}" for name, sure in pairs))


def merge_run(path: Path, out: Path, *, weights: Path | None, force: bool = False) -> None:
    """Write the merged weights as one safetensors file."""
    from safetensors import SafetensorError

    from convpeft.deployment.weights import write_weights
    from convpeft.evaluation.inference import load_classifier
    from convpeft.merging import merge
    from convpeft.writing import whole_file

    if out.suffix != ".safetensors":
        raise OptionError(f"--out {out}: expected a name that ends in .safetensors.")
    if out.exists():
        raise OptionError(f"--out {out}: exists already. Give another name.")
    with warnings_as_lines() as warned:
        classifier = load_classifier(path, weights=weights, force=force)
    model = merge(classifier.model)
    notes = {"forced": json.dumps(warned, ensure_ascii=False)} if force else {}
    try:
        with whole_file(out) as work:
            number = write_weights(model, work, classifier, notes=notes)
    except (OSError, SafetensorError) as error:
        why = one_line(error)
        raise RunError(f"--out {out}: cannot be written ({why}). Free space or give another name.") from None
    say(f"{out}: {number} tensors, {len(classifier.classes)} classes")
