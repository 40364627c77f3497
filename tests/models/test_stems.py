"""The first convolution: what it learned survives another number of channels."""

import pytest
import torch
from timm.models import adapt_input_conv
from torch import nn

from convpeft.errors import ModelError
from convpeft.models.stems import adapt_weight, first_convolution, input_channels, set_input_channels

# Sums of three float32 products in another order.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_an_rgb_stem_is_adapted_as_timm_does(channels):
    weight = torch.randn(8, 3, 5, 5)
    torch.testing.assert_close(adapt_weight(weight, channels), adapt_input_conv(channels, weight.clone()))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_equal_channels_give_the_response_they_gave(channels):
    convolution = nn.Conv2d(3, 6, 3, bias=True)
    grey = torch.rand(2, 1, 9, 9)
    before = convolution(grey.expand(2, 3, 9, 9))
    if channels in (2, 4):  # repeating and rescaling keeps it where the three channels' filters are equal
        convolution.weight.data = convolution.weight.data.mean(dim=1, keepdim=True).repeat(1, 3, 1, 1)
        before = convolution(grey.expand(2, 3, 9, 9))
    set_input_channels(convolution, channels, source="net")
    torch.testing.assert_close(convolution(grey.expand(2, channels, 9, 9)), before, **ROUNDING)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_a_grey_stem_averages_the_channels(channels):
    convolution = nn.Conv2d(1, 6, 3)
    images = torch.rand(2, channels, 9, 9)
    expected = convolution(images.mean(dim=1, keepdim=True))
    set_input_channels(convolution, channels, source="net")
    torch.testing.assert_close(convolution(images), expected, **ROUNDING)


def test_the_same_number_changes_nothing():
    convolution = nn.Conv2d(3, 6, 3)
    weight = convolution.weight
    set_input_channels(convolution, 3, source="net")
    assert convolution.weight is weight


def test_the_dtype_and_the_gradient_flag_are_kept():
    convolution = nn.Conv2d(3, 6, 3, dtype=torch.bfloat16)
    convolution.weight.requires_grad_(False)
    set_input_channels(convolution, 4, source="net")
    assert (convolution.weight.dtype, convolution.weight.requires_grad) == (torch.bfloat16, False)


def test_the_first_convolution_is_found_below_the_top():
    model = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Conv2d(2, 3, 1)), nn.Conv2d(3, 4, 1))
    found = first_convolution(model)
    assert found is not None
    assert found[0] == "0.1"
    assert input_channels(model) == 2


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(48, 4, 1)])
def test_a_network_without_a_plain_stem_is_refused(model):
    with pytest.raises(ModelError, match=r"^net: its first layer is no plain convolution over 1 to 4 channels, so its"):
        set_input_channels(model, 1, source="net")
