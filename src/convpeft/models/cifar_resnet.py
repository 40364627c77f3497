"""The thin ResNets for 32x32 images of He et al. (2015, arXiv:1512.03385, section 4.2), with option-A shortcuts.

The names of the tensors are those of Idelbayev's "Proper ResNet Implementation for CIFAR10/CIFAR100 in PyTorch"
(github.com/akamaster/pytorch_resnet_cifar10), so that its trained weights load strictly.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from convpeft.models.preprocessing import Preprocessing

DEPTHS = (20, 32, 44, 56)
PREPROCESSING = Preprocessing(size=(32, 32), crop=1.0)


class OptionAShortcut(nn.Module):
    """Carry features over without parameters: every ``stride``-th pixel, and zeros for the added channels."""

    def __init__(self, *, added_channels: int, stride: int) -> None:
        super().__init__()
        self.added_channels = added_channels
        self.stride = stride

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the shape of the block's output."""
        kept = features[:, :, :: self.stride, :: self.stride]
        before = self.added_channels // 2
        return functional.pad(kept, (0, 0, 0, 0, before, self.added_channels - before))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = (
            OptionAShortcut(added_channels=out_channels - in_channels, stride=stride) if changes else nn.Identity()
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, in, height, width) to (batch, out, height / stride, width / stride)."""
        update = functional.relu(self.bn1(self.conv1(features)))
        update = self.bn2(self.conv2(update))
        return functional.relu(update + self.shortcut(features))


class CifarResNet(nn.Module):
    """A stem, three stages of (depth - 2) / 6 blocks with 16, 32 and 64 channels, and the classifier ``linear``.

    Args:
        depth: Number of weighted layers, 6 n + 2.
        num_classes: Outputs of the classifier.
        in_channels: Channels of the input.
    """

    def __init__(self, *, depth: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, num_classes) logits."""
        features = functional.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.linear(features.mean(dim=(2, 3)))


def _stage(in_channels: int, out_channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride=stride)
    rest = [BasicBlock(out_channels, out_channels, stride=1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
