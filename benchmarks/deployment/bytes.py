"""Bytes that travel to a device: the whole network against an adapter and its map.

python benchmarks/deployment/bytes.py [--out docs/results/deployment/bytes.json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import page
import torch

import convpeft
from convpeft.adapter_description import MAP
from convpeft.deployment.patch_map import write_patch_map

NETWORKS = {
    "ResNet-18": "timm/resnet18",
    "ResNet-50": "timm/resnet50",
    "MobileNetV3-small": "timm/mobilenetv3_small_100",
    "EfficientNet-B0": "timm/efficientnet_b0",
}
CLASSES = 10
RANK = 8


def measure(source: str, folder: Path) -> dict[str, int]:
    """Save lora with a fresh head, write its map, and count; the full model is the merged weights as safetensors."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = convpeft.load_model(source, pretrained=False).eval()
    convpeft.attach(model, "lora", rank=RANK, num_classes=CLASSES)
    adapter = convpeft.save(model, folder / "adapter")
    write_patch_map(adapter)
    merged = {key: value.contiguous() for key, value in convpeft.merge(model).state_dict().items()}
    save_file(merged, folder / "full.safetensors")
    sizes = {each.name: each.stat().st_size for each in adapter.iterdir()}
    return {
        "full": (folder / "full.safetensors").stat().st_size,
        "adapter": sum(size for name, size in sizes.items() if name != MAP),
        "patch": sum(sizes.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results/deployment/bytes.json"))
    out = parser.parse_args().out
    rows = []
    for name, source in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            sizes = measure(source, Path(folder))
        row = {"network": name, "source": source, **sizes, "ratio": round(sizes["full"] / sizes["patch"], 1)}
        rows.append(row)
        print(f"{name:<18} full {row['full']:>12,}  adapter {row['adapter']:>10,}  patch {row['patch']:>10,}")
    told = {"method": "lora", "rank": RANK, "classes": CLASSES, "torch": torch.__version__, "rows": rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    page.write_page()


if __name__ == "__main__":
    main()
