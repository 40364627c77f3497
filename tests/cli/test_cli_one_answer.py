"""C06: library, command line, merged model and ONNX give one answer; a web page is not built yet."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import convpeft
from convpeft.deployment.onnx_file import load_onnx
from convpeft.deployment.onnx_merged import export_onnx
from convpeft.evaluation.inference import classify, load_classifier
from convpeft.merging import merged
from deployment_samples import IMAGES
from measuring import counted, measured, times
from tiny import recipe

MERGED, ONNX = 1e-5, 1e-4  # promises, C06


@pytest.mark.slow
@pytest.mark.promise("C06")
def test_library_command_line_merged_and_onnx_agree(call, tmp_path):
    """Four ways to ask; the fifth, a web page, does not exist yet."""
    keys = {"data__source": "glyphs:digits", "data__limit": 100, "train__epochs": 1}
    convpeft.train(recipe(tmp_path, tmp_path / "run", **keys))
    images = convpeft.data.load_data("glyphs:digits").test
    files, number = [], times(full=500, reduced=60)
    (tmp_path / "pictures").mkdir()
    for place in np.linspace(0, len(images) - 1, number).astype(int):
        files.append(tmp_path / "pictures" / f"{place:06}.png")
        Image.fromarray(images.images[int(place)].squeeze()).save(files[-1])
    library = load_classifier(tmp_path / "run")
    checked_on = IMAGES.new_zeros(12, 1, 28, 28).copy_(IMAGES[:, :1].repeat(1, 1, 3, 3)[:, :, :28, :28])
    export_onnx(library, tmp_path / "x.onnx", images=checked_on)
    expected = classify(library, files)
    others = {
        "merged": (classify(dataclasses.replace(library, model=merged(library.model)), files), MERGED),
        "onnx": (classify(load_onnx(tmp_path / "x.onnx"), files), ONNX),
    }
    for name, (answers, limit) in others.items():
        for one, other in zip(answers, expected, strict=True):
            assert one.classes[0] == other.classes[0], name
            chances = dict(zip(other.classes, other.probabilities, strict=True))
            gap = max(abs(p - chances[c]) for c, p in zip(one.classes, one.probabilities, strict=True) if c in chances)
            measured(f"largest difference of probabilities, {name}", gap)
            assert gap <= limit
    for path in (tmp_path / "run", tmp_path / "x.onnx"):
        for told, wanted in zip(call("predict", path, *files, "--json").json, expected, strict=True):
            assert told["top"][0]["class"] == wanted.classes[0]
            assert told["top"][0]["probability"] == pytest.approx(wanted.probabilities[0], abs=ONNX)
    counted("images", len(files))
