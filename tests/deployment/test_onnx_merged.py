"""A merged ONNX file answers as the adapted network does, or is not there."""

import onnx
import pytest
import torch

from convpeft.deployment import graphs, onnx_merged
from convpeft.deployment.onnx_file import load_onnx
from convpeft.deployment.onnx_merged import export_onnx
from convpeft.errors import ModelError
from convpeft.evaluation.predicting import predict_logits
from deployment_samples import IMAGES, classifier
from measuring import measured

ABSOLUTE = 1e-4  # promises, C12
KINDS = {"bias": (1, 0), "no-bias": (1, 0), "depthwise": (1, 0), "convnext": (0, 0), "norm-first": (0, 1)}


@pytest.mark.promise("C12")
@pytest.mark.parametrize("kind", KINDS)
def test_merged_file_equals_the_adapted_network(kind, tmp_path):
    """Against onnx's own slow evaluator, not the runtime that the export checks with."""
    from onnx.reference import ReferenceEvaluator

    made = classifier(kind)
    done = export_onnx(made, tmp_path / "x.onnx", images=IMAGES)
    assert (done.folded, done.kept) == KINDS[kind]
    with torch.no_grad():
        for size in (1, 3, 8):
            (found,) = ReferenceEvaluator(onnx.load(tmp_path / "x.onnx")).run(None, {"images": IMAGES[:size].numpy()})
            gap = float((torch.from_numpy(found) - made.model(IMAGES[:size])).abs().max())
            measured("largest difference of logits", gap)
            assert gap <= ABSOLUTE


@pytest.mark.promise("C12")
def test_file_that_differs_is_not_left(tmp_path, monkeypatch):
    def spoiled(*arguments, **options):
        graph = graphs.make_graph(*arguments, **options)
        for each in graph.graph.initializer:
            if each.data_type == onnx.TensorProto.FLOAT:
                each.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(each) * 1.01, each.name))
        return graph

    monkeypatch.setattr(onnx_merged, "make_graph", spoiled)
    with pytest.raises(ModelError, match=r"the exported file differs from PyTorch by .*; the limits are 1e-04"):
        export_onnx(classifier(), tmp_path / "x.onnx", images=IMAGES)
    assert not list(tmp_path.iterdir())


def test_odd_names_and_layout_survive(tmp_path):
    names = tuple(f"Klasse {number} \u2013 \U0001f9ff é\u0301 'quo\"te' \u202e" for number in range(300))
    made = classifier(classes=names)
    made.model.to(memory_format=torch.channels_last)
    export_onnx(made, tmp_path / "x.onnx", images=IMAGES)
    read = load_onnx(tmp_path / "x.onnx")
    assert read.classes == names
    assert read.preprocessing == made.preprocessing


def test_dynamic_size_takes_other_sizes(tmp_path):
    made = classifier()
    export_onnx(made, tmp_path / "x.onnx", images=IMAGES, dynamic_size=True)
    larger = torch.rand(5, 3, 17, 23)
    numbers = torch.arange(5)
    found = predict_logits(load_onnx(tmp_path / "x.onnx").model, [(larger, numbers, numbers)]).logits
    with torch.no_grad():
        assert abs(found - made.model(larger).numpy()).max() <= ABSOLUTE


def test_method_that_does_not_merge_says_so(tmp_path):
    with pytest.raises(ModelError, match="is no map of weights and cannot be merged"):
        export_onnx(classifier(method="conv-adapter"), tmp_path / "x.onnx", images=IMAGES)
    assert not list(tmp_path.iterdir())


def test_method_that_merges_in_evaluation_only_is_exported(tmp_path):
    export_onnx(classifier(method="residual-serial"), tmp_path / "x.onnx", images=IMAGES)
    assert load_onnx(tmp_path / "x.onnx").classes == ("a", "b", "c")
