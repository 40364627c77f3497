"""`convpeft check`: a table, a sentence, and an exit status that a script can rely on."""

import pytest
from safetensors.torch import save_file

import convpeft

FAULTY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        x = self.first(x).relu()
        x = nn.functional.conv2d(x, self.second._parameters["weight"])
        return self.head(x.mean((2, 3)))

def build():
    torch.manual_seed(0)
    return Net()

def refuses():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(5, 2))
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """Name of an importable module with a network that reads a weight past its adapter."""
    (tmp_path / "faulty_network.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "faulty_network"


def test_check_of_a_good_network_shows_every_claim_and_succeeds(call):
    text = call("check", "small-cnn").succeeded()
    for word in ("lora on small-cnn, input 2x1x28x28", "gradients", "merged equals adapted", "base frozen", "pass"):
        assert word in text
    assert text.splitlines()[-1] == "lora on 3 layers: all 13 checks that apply passed. No fault was found."


def test_check_of_a_faulty_network_fails_and_says_where(call, module):
    outcome = call("check", f"{module}:build")
    assert outcome.status == 1
    assert outcome.err == ""
    assert "'second'" in outcome.out
    last = outcome.out.splitlines()[-1]
    assert "checks failed" in last
    assert "adapters reached" in last


def test_check_takes_a_method(call):
    told = call("check", "small-cnn", "--method", "conv-adapter", "--json").json
    assert told["method"] == "conv-adapter"
    assert {check["name"]: check["status"] for check in told["checks"]}["merged equals adapted"] == "skipped"


def test_check_tells_programs_the_same_and_keeps_the_status(call, module):
    outcome = call("check", f"{module}:build", "--json")
    assert outcome.status == 1
    assert outcome.json["passed"] is False
    assert [each["name"] for each in outcome.json["checks"] if each["status"] == "fail"] == [
        "merged equals adapted",
        "adapters reached",
    ]


def test_check_of_a_run_needs_no_model(call, run):
    told = call("check", "--adapter", run, "--json").json
    assert told["passed"] is True
    assert told["method"] == "lora"
    assert told["inputs"] == [[2, 1, 28, 28]]


def test_check_of_an_adapter_on_another_base_is_refused(call, run):
    assert "made for the base" in call("check", "small-cnn", "--adapter", run).failed(1)


def test_check_of_an_adapter_on_its_base_passes(call, tmp_path):
    weights = tmp_path / "base.safetensors"
    model = convpeft.load_model("small-cnn")
    save_file(model.state_dict(), weights)
    convpeft.save(convpeft.attach(model, "dora"), tmp_path / "adapter")
    told = call("check", "small-cnn", "--weights", weights, "--adapter", tmp_path / "adapter", "--json").json
    assert told["passed"] is True
    assert told["method"] == "dora"


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (("--json",), 2, "nothing to check. Name a MODEL, or an adapter with --adapter RUN."),
        (("small-cnn", "--method", "lroa"), 2, "Did you mean 'lora'?"),
        (("small-cnn", "--method", "lora", "--adapter", "RUN"), 2, "--method and --adapter exclude each other"),
        (("small-cnn", "--random-weights", "--adapter", "RUN"), 2, "--random-weights and --adapter exclude each other"),
        (("small-cnn", "--method", "norm-tuning"), 2, "finds no layer to adapt"),
        (("no such model",), 1, "no such kind of source"),
        (("small-cnn", "--adapter", "nowhere"), 1, "nowhere: holds no adapter"),
        (("--adapter", "nowhere"), 1, "nowhere: holds no adapter"),
        (("small-cnn", "--weights", "nowhere.pth"), 1, "nowhere.pth"),
        (("faulty_network:refuses",), 1, "the model cannot be checked, because it runs on no blank image"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
@pytest.mark.usefixtures("module")
def test_mistake_of_check_is_one_line(call, run, words, status, line):
    assert line in call("check", *(str(run) if word == "RUN" else word for word in words)).failed(status)
