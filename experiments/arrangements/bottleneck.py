"""A small ResNet of bottleneck blocks in both forms: what sets v1 and v1.5 apart is where a block has its stride."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

_WIDTHS = (16, 32, 64)
_EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with BatchNorm, beside a 1x1 convolution as shortcut.

    Args:
        in_channels: Channels of the input.
        width: Channels within the block; its output has four times as many.
        first_stride: Of the first 1x1 convolution; above 1 in v1 (He et al. 2015, arXiv 1512.03385).
        middle_stride: Of the 3x3 convolution; above 1 in v1.5, the form that libraries ship.
    """

    def __init__(self, in_channels: int, width: int, *, first_stride: int, middle_stride: int) -> None:
        super().__init__()
        outputs = width * _EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride=first_stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=middle_stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(
            nn.Conv2d(in_channels, outputs, 1, stride=first_stride * middle_stride, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, in, height, width) to (batch, 4 width, height / stride, width / stride)."""
        update = functional.relu(self.bn1(self.conv1(features)))
        update = functional.relu(self.bn2(self.conv2(update)))
        return functional.relu(self.bn3(self.conv3(update)) + self.downsample(features))


class BottleneckResNet(nn.Module):
    """A stem of stride 2 and three blocks of 16, 32 and 64 channels, with the names of torchvision's resnet50.

    Args:
        strides: First and middle stride of the second and third block.
        num_classes: Outputs of the classifier.
        in_channels: Channels of the input.
    """

    def __init__(self, *, strides: tuple[int, int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, _WIDTHS[0], 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        inputs = _WIDTHS[0]
        for number, width in enumerate(_WIDTHS, start=1):
            first, middle = strides if number > 1 else (1, 1)
            block = Bottleneck(inputs, width, first_stride=first, middle_stride=middle)
            self.add_module(f"layer{number}", nn.Sequential(block))
            inputs = width * _EXPANSION
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, num_classes) logits."""
        features = functional.relu(self.bn1(self.conv1(images)))
        for name in ("layer1", "layer2", "layer3"):
            features = self.get_submodule(name)(features)
        return self.fc(features.mean(dim=(2, 3)))


def v1(num_classes: int = 10, in_channels: int = 1) -> BottleneckResNet:
    """The stride in the first 1x1 convolution of a block: it drops three pixels of four before the 3x3 sees them."""
    return BottleneckResNet(strides=(2, 1), num_classes=num_classes, in_channels=in_channels)


def v15(num_classes: int = 10, in_channels: int = 1) -> BottleneckResNet:
    """The stride in the 3x3 convolution."""
    return BottleneckResNet(strides=(1, 2), num_classes=num_classes, in_channels=in_channels)
