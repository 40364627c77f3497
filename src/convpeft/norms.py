"""What happens to normalisation layers while an adapter is trained, and the check that it still holds."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

from convpeft.adapters import Module, NormPolicy
from convpeft.errors import ModelError, OptionError
from convpeft.injection import AdaptedLayer
from convpeft.sites import walk


def choose_policy(classes: Sequence[type[Module]], norm: NormPolicy | None) -> NormPolicy:
    """The policy that was asked for, or the first method's default that goes with the others.

    * `frozen`: affine and running statistics stay as they are, also under `model.train()`;
    * `adapt`: statistics are re-estimated on the target and saved with the adapter;
    * `train`: affine and statistics are trained and saved.

    Raises:
        OptionError: If a method and the policy, or two methods, contradict each other.
    """
    if norm is None:
        common: list[NormPolicy] = [
            policy for policy in classes[0].norm_policies if all(policy in c.norm_policies for c in classes)
        ]
        if not common:
            names = " and ".join(repr(cls.method_name) for cls in classes)
            raise OptionError(f"methods {names} go with no common norm policy. Attach them under two names.")
        return common[0]
    if norm not in ("frozen", "adapt", "train"):
        raise OptionError(f"norm={norm!r} is not a norm policy. Known: frozen, adapt, train.")
    for cls in classes:
        if norm not in cls.norm_policies:
            raise OptionError(
                f"method {cls.method_name!r} contradicts norm={norm!r}: both would set the same norm parameters. "
                f"It goes with {' or '.join(cls.norm_policies)}."
            )
    return norm


def norms_with_statistics(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Layers that keep running statistics: they would move in train mode, parameters frozen or not."""
    return [(path, m) for path, m in walk(model) if isinstance(m, _NormBase) and m.running_mean is not None]


def verify_norms(model: nn.Module) -> None:
    """Raise if a layer that keeps running statistics is live again, as after `convert_sync_batchnorm`.

    Raises:
        ModelError: Naming the layer.
    """
    for path, layer in norms_with_statistics(model):
        if not isinstance(layer, AdaptedLayer):
            raise ModelError(
                f"norm layer {path!r} ({type(layer).__name__}) was replaced after attaching and would move the base's "
                "statistics. Convert norms (SyncBatchNorm) before convpeft.attach."
            )
