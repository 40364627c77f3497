"""`convpeft combine` sums adapters, says in what form, and refuses in one line."""

import pytest
import torch

import convpeft
from contract.networks import randomise
from convpeft.models.source import ModelSource


@pytest.fixture
def adapters(tmp_path):
    """Two adapters of a small network whose weights lie in a file."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weights = tmp_path / "base.safetensors"
    save_file(convpeft.load_model("small-cnn").state_dict(), weights)
    found = []
    for seed in (1, 2):
        model = convpeft.load_model("small-cnn", weights=weights)
        assert isinstance(model.__dict__["_convpeft_source"], ModelSource)
        randomise(convpeft.attach(model, "lora", rank=8, num_classes=2), seed)
        found.append(convpeft.save(model, tmp_path / str(seed), classes=["a", "b"]))
    return found


def test_command_writes_the_sum_and_says_its_form(call, adapters, tmp_path):
    said = call("combine", *adapters, "--coefficients", "0.25,0.75", "--out", tmp_path / "sum").succeeded()
    assert "averaged heads 1" in said
    assert "low-rank factors" in said
    assert "whole weights 1" in said  # of the first layer, which is small
    assert " kB from " in said or " MB from " in said
    models = [convpeft.from_adapter(path).eval() for path in (*adapters, tmp_path / "sum")]
    first, second, found = (convpeft.merged(model).state_dict() for model in models)
    own = convpeft.detach(models[0]).state_dict()
    for key, value in found.items():
        expected = 0.25 * first[key] + 0.75 * second[key]
        assert value.shape != own[key].shape or not torch.equal(value, own[key]) or "bias" in key
        assert torch.allclose(value, expected, rtol=0, atol=1e-6)


def test_equal_shares_are_the_default(call, adapters, tmp_path):
    call("combine", *adapters, "--out", tmp_path / "one").succeeded()
    call("combine", *adapters, "--coefficients", "0.5,0.5", "--out", tmp_path / "two").succeeded()
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


def test_wrong_words_are_refused_in_one_line(call, adapters, tmp_path):
    out = ("--out", tmp_path / "sum")
    line = call("combine", *adapters, "--coefficients", "0.5;0.5", *out).failed(2)
    assert "--coefficients '0.5;0.5': expected numbers with commas between them, as 0.5,0.5." in line
    assert "add up to 2, but heads" in call("combine", *adapters, "--coefficients", "1,1", *out).failed(2)
    assert "holds no adapter" in call("combine", tmp_path, *out).failed(1)
    assert not (tmp_path / "sum").exists()
    assert "exists already. Give another name." in call("combine", *adapters, "--out", adapters[0]).failed(2)
