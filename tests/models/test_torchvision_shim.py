"""The shim: torchvision imports, and another failure of its import is not hidden."""

import pytest

import convpeft._torchvision as shim


def test_torchvision_and_timm_import():
    import timm
    import torchvision

    assert torchvision.models.list_models()
    assert timm.is_model("resnet18")


def test_a_second_import_declares_nothing():
    assert shim._import_torchvision() is None


def test_another_failure_is_passed_on(monkeypatch):
    def fail(name):
        raise RuntimeError("something else")

    monkeypatch.setattr(shim, "import_module", fail)
    with pytest.raises(RuntimeError, match="something else"):
        shim._import_torchvision()


def test_the_missing_operator_is_declared_once_and_the_import_tried_again(monkeypatch):
    declared, attempts = [], []

    class Library:
        def __init__(self, namespace, kind):
            assert (namespace, kind) == ("torchvision", "FRAGMENT")

        def define(self, schema):
            declared.append(schema.partition("(")[0])

    def fail_once(name):
        attempts.append(name)
        if len(attempts) == 1:
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(shim, "import_module", fail_once)
    monkeypatch.setattr(shim.torch.library, "Library", Library)
    monkeypatch.setattr(shim.sys, "modules", {})
    assert isinstance(shim._import_torchvision(), Library)
    assert (declared, attempts) == (["nms", "qnms"], ["torchvision", "torchvision"])
