"""Plain weights have the base's keys: a new bias goes into the norm behind it, or is named."""

import pytest
import torch
from safetensors.torch import load_file

from convpeft.deployment.weights import export_weights
from deployment_samples import IMAGES, classifier, network


@pytest.mark.parametrize("method", ["lora", "ssf"])
def test_weights_load_into_the_bare_network(method, tmp_path):
    made = classifier("no-bias", method)
    done = export_weights(made, tmp_path / "x.safetensors", images=IMAGES)
    assert done.absorbed == (("0.bias",) if method == "ssf" else ())
    plain = network("no-bias", classes=3)
    plain.load_state_dict(load_file(tmp_path / "x.safetensors"))
    with torch.no_grad():
        assert (plain(IMAGES) - made.model(IMAGES)).abs().max() <= 1e-4


def test_bias_without_a_norm_behind_is_named(tmp_path):
    done = export_weights(classifier("no-norm", "ssf"), tmp_path / "x.safetensors", images=IMAGES)
    assert (done.absorbed, done.added) == ((), ("0.bias",))
    assert "0.bias" in load_file(tmp_path / "x.safetensors")
