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
    from safetensors.torch import save_file

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
    told = {
        "format": "pt",
        "classes": json.dumps(classifier.classes, ensure_ascii=False),
        "preprocessing": json.dumps(classifier.preprocessing.to_dict()),
    }
    if force:
        told["forced"] = json.dumps(warned, ensure_ascii=False)
    tensors = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    try:
        with whole_file(out) as work:
            save_file(tensors, work, metadata=told)
    except (OSError, SafetensorError) as error:
        why = one_line(error)
        raise RunError(f"--out {out}: cannot be written ({why}). Free space or give another name.") from None
    say(f"{out}: {len(tensors)} tensors, {len(classifier.classes)} classes")
