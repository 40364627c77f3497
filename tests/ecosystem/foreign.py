"""Networks of other libraries with random weights, and what is asked of each of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convpeft.sites import NORM_CLASSES


@dataclass(frozen=True)
class Foreign:
    """One network: how it is built, the head that is found (None: it has none), and how it is called."""

    build: Callable[[], nn.Module]
    head: str | None
    keyword: str | None = None  # the name that images are passed by, where the library does so
    package: str = "torch"

    @property
    def is_there(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    def model(self) -> nn.Module:
        """The same weights each time, statistics and gains as training leaves them."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.build()
            settle(model, lambda: self.run(model, images(8)))
        return model.eval()

    def run(self, model: nn.Module, x: Tensor) -> list[Tensor]:
        output = model(x) if self.keyword is None else model(**{self.keyword: x})
        return tensors_in(output)


def images(number: int = 2) -> Tensor:
    return torch.randn(number, 3, 64, 64, generator=torch.Generator().manual_seed(number))


def tensors_in(output: object) -> list[Tensor]:
    """A tensor, a tuple, or the mapping that transformers returns."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if hasattr(output, "values") else output
    return [each for value in values for each in tensors_in(value)]


def settle(model: nn.Module, run: Callable[[], object]) -> None:
    """Gains that are not zero, which would hide what is behind them, and statistics that fit the images."""
    for name, gain in model.named_parameters():
        if "bias" not in name and gain.ndim == 1 and gain.abs().max() < 1e-3:
            nn.init.uniform_(gain, 0.5, 1.5)
    for module in model.modules():
        if isinstance(module, NORM_CLASSES) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
    norms = [module for module in model.modules() if hasattr(module, "running_mean")]
    momenta = {norm: norm.momentum for norm in norms}
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    with torch.no_grad():
        run()
    for norm, momentum in momenta.items():
        norm.momentum = momentum


def _resnet(kind: str = "basic", **options: object) -> object:
    from transformers import ResNetConfig

    small = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2], "layer_type": kind, "num_labels": 5}
    return ResNetConfig(**(small | options))


def _resnet_classifier() -> nn.Module:
    from transformers import ResNetForImageClassification

    return ResNetForImageClassification(_resnet())


def _resnet_backbone() -> nn.Module:
    from transformers import AutoBackbone

    return AutoBackbone.from_config(_resnet("bottleneck", out_features=["stage1", "stage2"]))


def _convnext(name: str, **options: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        config = transformers.ConvNextConfig(
            num_stages=2, hidden_sizes=[16, 32], depths=[1, 2], num_labels=5, layer_scale_init_value=0.5, **options
        )
        return getattr(transformers, name)(config)

    return build


def _segmenter(name: str, encoder: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import segmentation_models_pytorch

        return getattr(segmentation_models_pytorch, name)(encoder, encoder_weights=None, classes=5)

    return build


def _encoder() -> nn.Module:
    from segmentation_models_pytorch.encoders import get_encoder

    return get_encoder("resnet18", weights=None)


def _timm(name: str, **options: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=5, **options)

    return build


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        return torchvision.models.get_model(name, weights=None, num_classes=5)

    return build


def _timm_features() -> nn.Module:
    import timm

    return timm.create_model("resnet26", pretrained=False, features_only=True)


SMP = "segmentation_models_pytorch"
FOREIGN = {
    "timm/resnet10t": Foreign(_timm("resnet10t"), "fc", package="timm"),
    "timm/features of resnet26": Foreign(_timm_features, None, package="timm"),
    "torchvision/shufflenet_v2_x0_5": Foreign(_torchvision("shufflenet_v2_x0_5"), "fc", package="torchvision"),
    "transformers/ResNetForImageClassification": Foreign(
        _resnet_classifier, "classifier.1", "pixel_values", "transformers"
    ),
    "transformers/ConvNextForImageClassification": Foreign(
        _convnext("ConvNextForImageClassification"), "classifier", "pixel_values", "transformers"
    ),
    "transformers/ResNetBackbone": Foreign(_resnet_backbone, None, "pixel_values", "transformers"),
    "smp/Unet": Foreign(_segmenter("Unet", "resnet18"), None, package=SMP),
    "smp/FPN": Foreign(_segmenter("FPN", "mobilenet_v2"), "segmentation_head.0", package=SMP),
    "smp/encoder": Foreign(_encoder, None, package=SMP),
}
