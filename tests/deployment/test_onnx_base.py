"""The base's ONNX file has every base tensor under its name, bit for bit."""

import json

import onnx
import pytest
import torch
from onnx import numpy_helper

from convpeft.deployment.onnx_base import export_base, keep_tensors
from convpeft.errors import ModelError
from convpeft.fingerprints import base_tensors, fingerprint
from deployment_samples import IMAGES, PREPROCESSING, classifier, network


@pytest.mark.parametrize("kind", ["no-bias", "depthwise"])
def test_base_keeps_names_bits_and_norms(kind, tmp_path):
    adapted, base = classifier(kind).model, network(kind)
    export_base(adapted, tmp_path / "base.onnx", images=IMAGES, preprocessing=PREPROCESSING)
    graph = onnx.load(tmp_path / "base.onnx")
    found = {each.name: numpy_helper.to_array(each) for each in graph.graph.initializer}
    for name, tensor in base_tensors(base).items():
        assert found[name].tobytes() == tensor.detach().numpy().tobytes(), name
        assert found[name].shape == tuple(tensor.shape)
    assert sum(node.op_type == "BatchNormalization" for node in graph.graph.node) == 1
    assert len(next(node for node in graph.graph.node if node.op_type == "Conv").input) == 2  # no bias of zeros
    told = {each.key: each.value for each in graph.metadata_props}
    assert told["convpeft.fingerprint"] == fingerprint(base)[0]
    assert json.loads(told["convpeft.preprocessing"]) == PREPROCESSING.to_dict()


def test_changed_tensor_is_refused(tmp_path):
    export_base(network(), tmp_path / "base.onnx", images=IMAGES)
    with pytest.raises(ModelError, match="would not be kept as it is in the ONNX file"):
        keep_tensors(onnx.load(tmp_path / "base.onnx"), {"0.weight": torch.zeros(8, 3, 3, 3)})
