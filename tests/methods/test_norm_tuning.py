"""Norm tuning: affine norms only, and no policy that trains them too."""

import pytest
from torch import nn

import convpeft


def test_affine_norms_alone_are_trained() -> None:
    norms = (nn.BatchNorm2d(8), nn.GroupNorm(2, 8, affine=False), nn.LayerNorm(6, bias=False), nn.RMSNorm(6))
    model = convpeft.attach(nn.Sequential(nn.Conv2d(3, 8, 3), *norms), "norm-tuning")
    assert convpeft.count(model).layers == {"1": 16, "3": 6, "4": 6}


def test_network_without_norms_is_refused() -> None:
    with pytest.raises(convpeft.OptionError, match=r"'norm-tuning' finds no layer to adapt.*num_classes"):
        convpeft.attach(nn.Sequential(nn.Conv2d(3, 8, 3)), "norm-tuning")
