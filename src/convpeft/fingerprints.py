"""A digest of every base tensor an adapter relies on, equal for equal bits whatever the memory layout."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from convpeft.sites import walk

_SHORT = 16  # hexadecimal digits kept of each tensor's digest; the fingerprint of all keeps 64


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and values in row-major order; channels_last makes no difference."""
    plain = tensor.detach().to("cpu").contiguous()
    header = f"{plain.dtype}{tuple(plain.shape)}".encode()
    return hashlib.sha256(header + plain.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def base_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers of the base, without adapters and without `num_batches_tracked`."""
    found: dict[str, Tensor] = {}
    for path, module in walk(model):
        kept = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
        for name, tensor in {**module._parameters, **kept}.items():
            if tensor is not None and name != "num_batches_tracked":
                found[f"{path}.{name}".lstrip(".")] = tensor
    return found


def fingerprint(model: nn.Module) -> tuple[str, dict[str, str]]:
    """The base's fingerprint and a short digest of each tensor, which tells where two bases differ."""
    digests = {name: tensor_digest(tensor) for name, tensor in base_tensors(model).items()}
    total = hashlib.sha256("".join(f"{name}={digests[name]};" for name in sorted(digests)).encode()).hexdigest()
    return total, {name: digest[:_SHORT] for name, digest in digests.items()}
