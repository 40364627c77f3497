"""Machine and versions, as far as numbers depend on them; nothing that names the machine."""

from __future__ import annotations

import hashlib
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("convpeft", "torch", "torchvision", "timm", "peft", "lycoris_lora", "loralib", "keras", "numpy")


def versions() -> dict[str, str]:
    """Of everything that takes part and is installed."""
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def source_digest() -> str:
    """Of convpeft's files."""
    import convpeft

    digest = hashlib.sha256()
    for file in sorted(Path(convpeft.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def machine(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Cores, vector instructions and memory, and the GPU where one takes part."""
    import torch

    return {
        "cores": os.cpu_count(),
        "threads": threads,
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "bf16 instructions": bool(torch.cpu._is_avx512_bf16_supported()),
        "AMX tiles": bool(torch.cpu._is_amx_tile_supported()),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "cuda": torch.cuda.is_available(),
    } | ({} if device == "cpu" else {"gpu": torch.cuda.get_device_name()})
