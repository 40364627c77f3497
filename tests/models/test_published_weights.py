"""The real weights files: each loads strictly into the network that is built here for it."""

import numpy as np
import pytest
import torch
from PIL import Image

from convpeft.models import load_model, preprocessing_of

pytestmark = pytest.mark.data

FILES = [
    ("cifar-resnet/20", "resnet20_cifar10", 10),
    ("cifar-resnet/32", "resnet32_cifar10", 10),
    ("cifar-resnet/44", "resnet44_cifar10", 10),
    ("cifar-resnet/56", "resnet56_cifar10", 10),
    ("cifar-resnet/20", "resnet20_tinyimagenet32", 200),
    ("mobilenetv1/0.75", "mobilenetv1_075_imagenet", 1000),
    ("torchvision/squeezenet1_1", "squeezenet1_1_imagenet", 1000),
]


def load(data_root, source, name, **options):
    return load_model(source, weights=data_root / "weights" / f"{name}.safetensors", **options).eval()


@pytest.mark.parametrize(("source", "name", "classes"), FILES)
def test_published_weights_load_strictly(data_root, source, name, classes):
    model = load(data_root, source, name)
    preprocessing = preprocessing_of(model)
    with torch.no_grad():
        assert model(torch.rand(1, 3, *preprocessing.size)).shape == (1, classes)


def test_the_published_resnet_20_recognises_cifar_images(data_root):
    """8.27 % on all 10,000 images; on 300 of them the error is below 16 % with a probability above 0.9999."""
    model = load(data_root, "cifar-resnet/20", "resnet20_cifar10")
    preprocessing = preprocessing_of(model)
    classes = sorted((data_root / "cifar10" / "test").iterdir())
    files = [file for folder in classes for file in sorted(folder.glob("*.png"))[:30]]
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files])).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    with torch.no_grad():
        predicted = model((pixels - mean) / std).argmax(dim=1)
    expected = torch.arange(10).repeat_interleave(30)
    assert len(files) == 300
    assert (predicted != expected).float().mean() < 0.16


def test_a_grey_image_gets_nearly_the_same_answer_from_one_channel_as_from_three(data_root):
    """mobilenetv1 has equal statistics in all channels, so summing the filters is exact up to rounding."""
    colour = load(data_root, "mobilenetv1/0.75", "mobilenetv1_075_imagenet")
    grey = load(data_root, "mobilenetv1/0.75", "mobilenetv1_075_imagenet", in_channels=1)
    image = torch.rand(1, 1, 224, 224) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(grey(image), colour(image.expand(1, 3, 224, 224)), rtol=1e-3, atol=1e-3)
