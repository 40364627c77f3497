"""ResNet-50's sites as written down are those of the network itself."""

import timm

import convpeft
from convpeft.blocks import find_blocks
from convpeft.models.resnet50_sites import resnet50_sites
from convpeft.planning import trainable_on
from convpeft.sites import all_sites


def test_sites_are_those_of_timms_resnet50() -> None:
    model = timm.create_model("resnet50", pretrained=False)
    assert resnet50_sites() == all_sites(model) + find_blocks(model)


def test_sizes_are_those_that_attaching_gives() -> None:
    for method in ("lora", "bitfit", "norm-tuning", "full", "probe", "cp", "colora"):
        model = timm.create_model("resnet50", pretrained=False)
        assert trainable_on(resnet50_sites(), method) == convpeft.count(convpeft.attach(model, method)).trainable
