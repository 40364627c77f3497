"""What every worker needs, imported once before they are forked; nothing is computed here."""

import convpeft._torchvision

# isort: split
import timm  # noqa: F401
import torch  # noqa: F401
import torchvision  # noqa: F401
import worker  # noqa: F401

import convpeft  # noqa: F401
