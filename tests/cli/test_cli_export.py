"""`convpeft export`: one file, checked on the run's own images, or one line and no file."""

import json
import shutil

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

import convpeft
from contract.networks import randomise
from convpeft.deployment import graphs, quantizing
from convpeft.errors import ModelError
from convpeft.evaluation.inference import load_classifier
from deployment_samples import IMAGES, classifier, network


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--to", "onx", "--out", "x.onnx"], "is no format to export to. Did you mean 'onnx'?"),
        (["--out", "x.pt"], "expected a name that ends in .onnx for --to onnx"),
        (["--quantize", "int4", "--out", "x.onnx"], "expected int8. Leave it out for a float file"),
        (["--base", "--quantize", "int8", "--out", "x.onnx"], "--base writes a float ONNX file for patches"),
        (["--to", "torch", "--quantize", "int8", "--out", "x.safetensors"], "goes with --to onnx or executorch"),
        ([], "--out is missing: name the file to write for --to onnx"),
        (["--to", "patch", "--base"], "--to patch writes the map beside the adapter. Leave the other options out"),
        (["--to", "torch", "--dynamic-size", "--out", "x.safetensors"], "--dynamic-size goes with --to onnx, not"),
    ],
)
def test_options_that_do_not_fit_are_refused(call, run, tmp_path, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    assert line in call("export", run, *words).failed(2)
    assert not list(tmp_path.iterdir())


def test_file_that_is_there_is_kept(call, run, tmp_path):
    (tmp_path / "x.onnx").write_text("mine")
    assert "exists already" in call("export", run, "--out", tmp_path / "x.onnx").failed(2)
    assert (tmp_path / "x.onnx").read_text() == "mine"


def test_images_are_asked_for_where_none_can_be_had(call, run, images, tmp_path):
    line = call("export", run / "adapter", "--out", tmp_path / "x.onnx").failed(2)
    assert "so it tells no images to check the export with. Give --data" in line
    shutil.copytree(run, tmp_path / "moved")
    recipe = tmp_path / "moved" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(str(images), str(tmp_path / "gone")))
    line = call("export", tmp_path / "moved", "--out", tmp_path / "x.onnx").failed(1)
    assert "its images cannot be had, to check the export with" in line
    assert not (tmp_path / "x.onnx").exists()
    assert call("export", run / "adapter", "--data", f"folder:{images}", "--out", tmp_path / "x.onnx").status == 0


@pytest.mark.promise("C12")
def test_predict_from_the_file_answers_as_the_run(call, run, images, tmp_path):
    said = call("export", run, "--out", tmp_path / "x.onnx").succeeded()
    assert "at batch 1, 3, 8" in said
    mine, theirs = (call("predict", each, images, "--json").json for each in (tmp_path / "x.onnx", run))
    assert len(mine) == 24
    for one, other in zip(mine, theirs, strict=True):
        assert [each["class"] for each in one["top"]] == [each["class"] for each in other["top"]]
        for found, wanted in zip(one["top"], other["top"], strict=True):
            assert found["probability"] == pytest.approx(wanted["probability"], abs=1e-4)


@pytest.mark.parametrize("words", [["--force"], ["--weights", "w.safetensors"]])
def test_words_about_a_base_are_refused_for_a_file_that_holds_its_own(call, images, tmp_path, words):
    line = call("predict", tmp_path / "x.onnx", images, *words).failed(2)
    assert "holds its own network. Leave --weights and --force out" in line


def test_size_stays_fixed_where_the_network_takes_one_size(call, run, tmp_path):
    line = call("export", run, "--dynamic-size", "--out", tmp_path / "x.onnx").failed(1)
    assert "the network itself does not run on images of other sizes" in line


def test_plain_weights_answer_as_the_run(call, run, images, tmp_path):
    call("export", run, "--to", "torch", "--out", tmp_path / "x.safetensors").succeeded()
    plain = convpeft.load_model("small-cnn", weights=tmp_path / "x.safetensors").eval()
    adapted = load_classifier(run)
    batch = torch.rand(4, 1, 28, 28)
    with torch.no_grad():
        assert (plain(batch) - adapted.model(batch)).abs().max() <= 1e-4


def test_biases_that_went_into_norms_are_told(call, images, tmp_path):
    base = convpeft.load_model("cifar-resnet/20", num_classes=3)
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    model = convpeft.attach(convpeft.load_model("cifar-resnet/20", weights=tmp_path / "base.safetensors"), "ssf")
    adapter = convpeft.save(randomise(model), tmp_path / "adapter", classes=["high", "low", "middle"])
    words = ("--to", "torch", "--data", f"folder:{images}", "--out", tmp_path / "x.safetensors")
    said = call("export", adapter, *words).succeeded()
    assert "layer1.0.conv1.bias: moved into the norm behind it" in said
    assert load_file(tmp_path / "x.safetensors").keys() == base.state_dict().keys()


def test_eight_bits_are_measured_and_noted(call, run, tmp_path):
    words = ("--quantize", "int8", "--calibration-images", "7", "--json", "--out", tmp_path / "x.onnx")
    told = call("export", run, *words).json
    assert told["calibration_images"] == 7
    assert {"before", "after", "drop", "worst"} <= told["accuracy"].keys()
    metadata = {each.key: each.value for each in onnx.load(tmp_path / "x.onnx").metadata_props}
    assert json.loads(metadata["convpeft.accuracy"])["after"] == told["accuracy"]["after"]
    assert metadata["convpeft.kind"] == "int8"


def test_large_drop_is_a_warning_that_names_classes(call, run, tmp_path, monkeypatch):
    """With every answer of the quantised file turned to the first class."""
    from convpeft.deployment.onnx_file import OnnxNetwork

    answers = OnnxNetwork.forward
    monkeypatch.setattr(OnnxNetwork, "forward", lambda self, x: answers(self, x) + torch.tensor([99.0, 0.0, 0.0]))
    done = call("export", run, "--quantize", "int8", "--out", tmp_path / "x.onnx")
    assert "warning: accuracy drops by more than 1.0%. Most lost: " in done.succeeded()
    assert "low -100.0%" in done.out


def test_what_cannot_be_exported_says_so(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="the network cannot be exported to ONNX"):
        graphs.make_graph(network(), IMAGES[:, :1])  # grey, where colours are wanted
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: None)
    with pytest.raises(ModelError, match=r"the exporter returned nothing\. Update torch"):
        graphs.make_graph(network(), IMAGES)
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"the network cannot be quantised \(.*Export it without --quantize"):
        quantizing.quantize_onnx(tmp_path / "x.onnx", tmp_path / "y.onnx", [IMAGES], metadata={})
    assert not (tmp_path / "y.onnx").exists()


@pytest.mark.executorch
@pytest.mark.parametrize("words", [[], ["--quantize", "int8"]])
def test_run_becomes_a_program(call, run, tmp_path, words):
    pytest.importorskip("executorch.exir")
    told = call("export", run, "--to", "executorch", *words, "--json", "--out", tmp_path / "x.pte").json
    assert told["size"] == (tmp_path / "x.pte").stat().st_size
    assert told["difference"]["batches"] == [1, 3, 8]
    assert ("accuracy" in told) == bool(words)


@pytest.mark.executorch
def test_program_that_answers_nonsense_is_not_left(tmp_path, monkeypatch):
    pytest.importorskip("executorch.exir")
    from convpeft.deployment import executorch

    given = {"images": IMAGES, "calibration": [IMAGES]}
    monkeypatch.setattr(executorch, "_program", lambda *_: b"")
    monkeypatch.setattr(executorch, "load_program", lambda _: lambda x: torch.full((len(x), 3), float("nan")))
    with pytest.raises(ModelError, match="program answers with numbers that are not finite"):
        executorch.export_executorch(classifier(), tmp_path / "x.pte", **given)
    monkeypatch.setattr(executorch, "_program", lambda *_: 1 / 0)
    with pytest.raises(ModelError, match="the network cannot be exported to ExecuTorch"):
        executorch.export_executorch(classifier(), tmp_path / "x.pte", **given)
    assert not list(tmp_path.iterdir())
