"""Forty public architectures, as small as they come, with statistics as a pretrained network has them."""

from __future__ import annotations

import functools

import timm
import torch
import torchvision
from torch import Tensor, nn

from convpeft.sites import NORM_CLASSES

# Where a family is public in both libraries the implementations differ, and so do the traps in them.
NETWORKS = (
    "timm/vgg11",
    "timm/resnet18",
    "torchvision/resnet18",
    "timm/resnetv2_50x1_bit",
    "timm/resnext50_32x4d",
    "timm/seresnet18",
    "timm/skresnet18",
    "timm/ecaresnext26t_32x4d",
    "timm/densenet121",
    "timm/inception_v3",
    "torchvision/googlenet",
    "timm/legacy_xception",
    "timm/mobilenetv1_100",
    "timm/mobilenetv2_035",
    "timm/mobilenetv3_small_050",
    "timm/mobilenetv4_conv_small_050",
    "timm/efficientnet_b0",
    "timm/tf_efficientnetv2_b0",
    "torchvision/mnasnet0_5",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/squeezenet1_1",
    "timm/ghostnet_050",
    "timm/regnetx_002",
    "timm/regnety_002",
    "timm/repvgg_a0",
    "timm/mobileone_s0",
    "timm/convnext_atto",
    "timm/convnextv2_atto",
    "timm/nf_resnet26",
    "timm/eca_nfnet_l0",
    "timm/hrnet_w18_small",
    "timm/dla46_c",
    "timm/cspresnet50",
    "timm/res2net50_14w_8s",
    "timm/resnest14d",
    "timm/mixnet_s",
    "timm/mobilevit_xxs",
    "torchvision/r3d_18",
    "own/unet",
    "own/audio",
)
# Plain with BatchNorm; squeeze-excitation, hard-swish and depthwise; LayerNorm, 7x7 depthwise and layer scale;
# weight-standardised without norms; grouped; no norm and a convolution as classifier; transposed; 1-d.
EIGHT = (
    "timm/resnet18",
    "timm/mobilenetv3_small_050",
    "timm/convnext_atto",
    "timm/nf_resnet26",
    "timm/regnety_002",
    "torchvision/squeezenet1_1",
    "own/unet",
    "own/audio",
)
_ARGUMENTS = {
    "timm/vgg11": {"mlp_ratio": 1 / 32},  # 110 of its 130 million numbers are the hidden layers of its classifier
    "torchvision/googlenet": {"aux_logits": False, "init_weights": False},
}
_SHAPES = {
    "timm/inception_v3": (3, 96, 96),
    "torchvision/r3d_18": (3, 4, 56, 56),
    "own/unet": (3, 32, 32),
    "own/audio": (1, 2000),
}


@functools.lru_cache(maxsize=1)
def network(source: str) -> nn.Module:
    """One of the architectures in evaluation mode, the same each time; copy it before changing anything."""
    library, name = source.split("/")
    arguments = _ARGUMENTS.get(source, {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if library == "own":
            model = {"unet": UNet, "audio": AudioNet}[name]()
        elif library == "timm":
            model = timm.create_model(name, pretrained=False, **arguments)
        else:
            model = torchvision.models.get_model(name, weights=None, **arguments)
        _settle(model, images(source, 8))
    return model.eval()


def images(source: str, number: int = 2) -> Tensor:
    """A batch `(number, channels, *space)` that the architecture takes, the same each time."""
    shape = _SHAPES.get(source, (3, 64, 64))
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(number))


def _settle(model: nn.Module, x: Tensor) -> None:
    """Give it what training gives: gains of norms and branches that are not zero, and statistics that fit.

    A gain of zero would hide its branch, and without statistics activations explode.
    """
    gains = [module.weight for module in model.modules() if isinstance(module, NORM_CLASSES)]
    gains += [gain for name, gain in model.named_parameters() if "bias" not in name and gain.abs().max() < 1e-3]
    for gain in gains:
        nn.init.uniform_(gain, 0.5, 1.5)
    norms = [module for module in model.modules() if hasattr(module, "running_mean")]
    momenta = {norm: norm.momentum for norm in norms}
    for norm in momenta:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    for norm, momentum in momenta.items():
        norm.momentum = momentum


class UNet(nn.Module):
    """Two levels down and up with links across; a score for each class and pixel, or their mean for a whole image."""

    def __init__(self, *, classes: int = 5, width: int = 8, whole: bool = True) -> None:
        super().__init__()
        self.down1 = _twice(3, width)
        self.down2 = _twice(width, 2 * width)
        self.bottom = _twice(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.join2 = _twice(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.join1 = _twice(2 * width, width)
        self.classifier = nn.Conv2d(width, classes, 1)
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        """Images `(batch, 3, height, width)` to `(batch, classes)`, or `(batch, classes, height, width)`."""
        first = self.down1(x)
        second = self.down2(nn.functional.max_pool2d(first, 2))
        x = self.bottom(nn.functional.max_pool2d(second, 2))
        x = self.join2(torch.cat([self.up2(x), second], dim=1))
        x = self.classifier(self.join1(torch.cat([self.up1(x), first], dim=1)))
        return x.mean((2, 3)) if self.whole else x


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class AudioNet(nn.Module):
    """M5 (Dai et al. 2016, arXiv 1610.00087, table 1), narrower: a long first kernel, then pairs of conv and pool."""

    def __init__(self, *, classes: int = 5, width: int = 16) -> None:
        super().__init__()
        stages = []
        kernels = ((1, width, 80, 4), (width, width, 3, 1), (width, 2 * width, 3, 1), (2 * width, 2 * width, 3, 1))
        for inputs, outputs, kernel, stride in kernels:
            convolution = nn.Conv1d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)
            stages.append(nn.Sequential(convolution, nn.BatchNorm1d(outputs), nn.ReLU(), nn.MaxPool1d(4)))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Sound `(batch, 1, samples)` to `(batch, classes)`."""
        return self.fc(self.stages(x).mean(2))
