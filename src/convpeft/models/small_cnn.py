"""The small network for 28x28 characters: two convolutions, a projection layer, a classifier."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from convpeft.models.preprocessing import Preprocessing

# The mean and standard deviation of MNIST's training pixels.
PREPROCESSING = Preprocessing(size=(28, 28), crop=1.0, mean=(0.1307,), std=(0.3081,), channels=1)


class SmallCNN(nn.Module):
    """Two 3x3 convolutions with max-pooling, then 3136 -> 128 -> classes.

    Args:
        num_classes: Outputs of the classifier.
        in_channels: Channels of the 28x28 input.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.projection = nn.Linear(64 * 7 * 7, 128)
        self.dropout = nn.Dropout(0.25)
        self.classifier = nn.Linear(128, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, in_channels, 28, 28) to (batch, num_classes) logits."""
        features = functional.max_pool2d(functional.relu(self.conv1(images)), 2)  # (batch, 32, 14, 14)
        features = functional.max_pool2d(functional.relu(self.conv2(features)), 2)  # (batch, 64, 7, 7)
        features = functional.relu(self.projection(features.flatten(1)))
        return self.classifier(self.dropout(features))
