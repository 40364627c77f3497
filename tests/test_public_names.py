"""Every public name works, twice, in a process that has used nothing else."""

import subprocess
import sys
import types

import pytest

import convpeft

PREPARE = """
import contextlib, os, sys, tempfile, torch
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
from torch import nn
import convpeft

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4)).eval()

def adapted():
    return convpeft.attach(network(), "lora")

folder = tempfile.mkdtemp()

def saved():
    return convpeft.save(adapted(), folder + "/adapter")

def from_adapter():
    model = convpeft.attach(convpeft.load_model("small-cnn", pretrained=False), "lora")
    with contextlib.suppress(convpeft.ConvpeftError):  # random weights are not those of the file
        convpeft.from_adapter(convpeft.save(model, folder + "/sourced"))

def compressed():
    model = convpeft.load_model("small-cnn", pretrained=False)
    return convpeft.compress(model, lambda model: 1.0, candidates=1).save(folder + "/thin.safetensors")

def use(context):
    with context:
        pass

def train():
    with contextlib.suppress(convpeft.ConvpeftError):
        convpeft.train({"model": {"source": "no such model"}})
"""
USES = {
    "after_step": "convpeft.after_step(adapted())",
    "attach": "convpeft.attach(network(), 'lora')",
    "autotune": "convpeft.autotune(adapted(), torch.ones(2, 3, 3, 3))",
    "check": "convpeft.check(network(), example=torch.ones(2, 3, 3, 3))",
    "combine": "convpeft.combine([saved()], out=folder + '/sum')",
    "compress": "compressed()",
    "count": "convpeft.count(adapted())",
    "detach": "convpeft.detach(adapted())",
    "disabled": "use(convpeft.disabled(adapted()))",
    "from_adapter": "from_adapter()",
    "interpolated": "convpeft.interpolated(convpeft.attach(network(), 'full'), 0.5)",
    "kernels_of": "convpeft.kernels_of(adapted())",
    "list_methods": "convpeft.list_methods()",
    "load": "convpeft.load(network(), saved())",
    "load_compressed": "convpeft.load_compressed(compressed())",
    "load_model": "convpeft.load_model('small-cnn', pretrained=False)",
    "merge": "convpeft.merge(adapted())",
    "merged": "convpeft.merged(adapted())",
    "method_info": "convpeft.method_info('lora')",
    "old_head": "use(convpeft.old_head(adapted()))",
    "param_groups": "convpeft.param_groups(adapted())",
    "penalty": "convpeft.penalty(adapted())",
    "plan_training": "convpeft.plan_training(adapted(), epochs=1, steps_per_epoch=2)",
    "save": "saved()",
    "select": "convpeft.select(network())",
    "set_active": "convpeft.set_active(adapted(), [])",
    "set_kernels": "convpeft.set_kernels(adapted())",
    "train": "train()",
    "trainable_parameters": "convpeft.trainable_parameters(adapted())",
    "training_cost": "convpeft.training_cost(adapted(), torch.ones(2, 3, 3, 3))",
}
FUNCTIONS = [name for name in convpeft.__all__ if isinstance(getattr(convpeft, name), types.FunctionType)]


def run(code: str) -> None:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr


def test_every_function_is_used_here() -> None:
    assert set(FUNCTIONS) == set(USES)


@pytest.mark.parametrize("name", ["select", "load", "count", "train", "merge"])
def test_function_works_twice_when_it_is_the_first_to_be_used(name: str) -> None:
    run(f"{PREPARE}\n{USES[name]}\n{USES[name]}\nassert callable(convpeft.{name})")


def test_functions_work_twice_in_one_process() -> None:
    """A submodule of the same name would take a function's place once it is imported."""
    lines = [f"{USES[name]}\n{USES[name]}\nassert callable(convpeft.{name}), {name!r}" for name in FUNCTIONS]
    run("\n".join([PREPARE, *lines]))


def test_every_public_name_is_there_twice() -> None:
    run("import convpeft\nfor name in 2 * convpeft.__all__:\n    assert getattr(convpeft, name) is not None")


def test_names_are_sorted_listed_and_import() -> None:
    assert list(convpeft.__all__) == sorted(convpeft.__all__)
    assert set(dir(convpeft)) >= set(convpeft.__all__)
    run("from convpeft import *\nattach, Adapter, load")


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'convpeft' has no attribute 'atach'"):
        _ = convpeft.atach
