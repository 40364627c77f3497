"""An ExecuTorch program answers as the adapted network does; needs the extra executorch."""

import json

import pytest

from convpeft.deployment.executorch import ProgramNetwork, export_executorch, load_program
from convpeft.errors import ModelError
from convpeft.models import Preprocessing
from deployment_samples import IMAGES, classifier

pytestmark = pytest.mark.executorch


@pytest.mark.parametrize("eight_bits", [False, True])
def test_program_answers_every_batch(eight_bits, tmp_path):
    pytest.importorskip("executorch.exir")
    calibration = IMAGES.split(8) if eight_bits else None
    done = export_executorch(classifier(), tmp_path / "x.pte", images=IMAGES, calibration=calibration)
    assert done.difference.absolute <= (0.5 if eight_bits else 1e-4)
    assert ProgramNetwork(load_program(tmp_path / "x.pte"))(IMAGES).shape == (12, 3)


def test_program_tells_classes_and_preprocessing(tmp_path):
    pytest.importorskip("executorch.exir")
    made = classifier()
    export_executorch(made, tmp_path / "x.pte", images=IMAGES)
    from executorch.runtime import Runtime

    content = (tmp_path / "x.pte").read_bytes()
    program = Runtime.get().load_program(content)
    (text,) = program.load_method("convpeft_metadata").execute([])
    told = json.loads(text)
    assert json.loads(told["convpeft.classes"]) == ["a", "b", "c"]
    assert Preprocessing.from_dict(json.loads(told["convpeft.preprocessing"])) == made.preprocessing


def test_missing_extra_is_one_line(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(ModelError, match=r"needs the package executorch; install it with pip install 'convpeft\[exec"):
        export_executorch(classifier(), tmp_path / "x.pte", images=IMAGES)
    assert not list(tmp_path.iterdir())
