"""Asking for help is quick, and the lists of methods and sources are those of the library."""

import subprocess
import sys
import time

import pytest

from convpeft._version import __version__
from convpeft.adapters import list_methods, method_info
from convpeft.catalog import read_catalog
from convpeft.data import list_sources
from measuring import measured

COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "merge",
    "export",
    "inspect",
    "check",
    "methods",
    "datasets",
    "demo",
    "patch",
    "combine",
    "push",
    "compare",
    "robustness",
    "compress",
)


def shell(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60)


@pytest.mark.promise("L04")
@pytest.mark.parametrize("words", [("--help",), ("train", "--help"), ("--version",), ("train", "--rnak", "3")])
def test_what_needs_no_torch_does_not_load_it(words):
    program = (
        "import sys, convpeft.cli\n"
        f"try: convpeft.cli.main({list(words)!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'torchvision', 'matplotlib', 'accelerate'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    done = shell("-c", program)
    assert done.returncode == 0, done.stderr


@pytest.mark.promise("L04")
def test_help_takes_less_than_a_second():
    """The best of three, so that a busy machine does not decide."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        done = shell("-m", "convpeft", "--help")
        times.append(time.perf_counter() - began)
        assert done.returncode == 0
        assert all(command in done.stdout for command in COMMANDS)
    measured("seconds of --help", min(times))
    assert min(times) < 1.0


def test_version_is_told(call):
    assert call("--version").succeeded() == f"convpeft {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(call, command):
    assert f"convpeft {command}" in call(command, "--help").succeeded()


def test_help_of_train_names_the_options_of_every_method(call):
    text = call("train", "--help").succeeded()
    for name in list_methods():
        assert name in text
        for option in method_info(name).options:
            assert f"--{option.name.replace('_', '-')}" in text


@pytest.mark.parametrize(
    "words",
    [(), *[(name,) for name in COMMANDS if name not in ("methods", "datasets", "demo")]],
)
def test_no_arguments_show_the_help_with_the_status_of_wrong_usage(call, words):
    outcome = call(*words)
    assert outcome.status == 2
    assert "Usage: convpeft" in outcome.out


def test_catalog_is_the_registry():
    """The catalog reads the files without running them; the registry runs them."""
    read = {entry.name: (entry.summary, entry.options) for entry in read_catalog()}
    records = [method_info(name) for name in list_methods()]
    assert read == {r.name: (r.summary, tuple(option.name for option in r.options)) for r in records}


def test_methods_are_listed_with_their_size(call):
    text = call("methods").succeeded()
    for name in list_methods():
        assert name in text
    assert "635,544" in text  # lora of rank 8 on ResNet-50: the sum of rank * (out + n) over its 53 convolutions


def test_options_of_one_method_are_shown(call):
    text = call("methods", "chapter").succeeded()
    assert "--arrangement" in text
    assert "'parallel', 'serial'" in text
    assert "no options" in call("methods", "probe").succeeded()
    assert call("methods", "lora", "--json").json["options"][0]["default"] == 8
    assert "Did you mean 'lora'" in call("methods", "lroa").failed(2)


def test_methods_are_listed_for_programs(call):
    listed = {record["name"]: record for record in call("methods", "--json").json}
    assert set(listed) == set(list_methods())
    assert [option["name"] for option in listed["lora"]["options"]][:3] == ["rank", "alpha", "rslora"]
    assert listed["lora"]["trainable_on_resnet50"] == 635_544
    assert listed["lora"]["options"][0]["default"] == 8


def test_datasets_are_listed_for_programs(call):
    listed = call("datasets", "--json").json
    assert [each["pattern"] for each in listed["data"]] == [source.pattern for source in list_sources()]
    assert "small-cnn" in [form for form, _ in listed["model"]]


def test_datasets_are_listed(call):
    text = call("datasets").succeeded()
    assert "folder:PATH" in text
    assert "small-cnn" in text
