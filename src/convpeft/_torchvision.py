"""Make torchvision importable beside a torch that its compiled operators do not fit.

torchvision's compiled operators need CUDA libraries; beside a CPU build of torch they are not loaded, and the
import then stops with ``operator torchvision::nms does not exist`` (pytorch/vision#9085, pytorch/pytorch#122494).
Declaring the two missing schemas is enough: models and transforms work, and ``nms`` itself still raises its own
clear error when it is called.

Import this module before anything that imports torchvision: timm, torchmetrics, torchvision itself.
"""

from __future__ import annotations

import sys
from importlib import import_module

import torch

_MISSING = "operator torchvision::nms does not exist"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _import_torchvision() -> torch.library.Library | None:
    """Import torchvision, declaring the missing schemas only when the import failed for want of them.

    Returns:
        The library that holds the schemas (they vanish when it is collected), or None when none were needed.
    """
    try:
        import_module("torchvision")
    except RuntimeError as error:
        if _MISSING not in str(error):
            raise
    else:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    # A failed import leaves its finished submodules behind; a clean start must not mix them with new ones.
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
    import_module("torchvision")
    return library


_library = _import_torchvision()
