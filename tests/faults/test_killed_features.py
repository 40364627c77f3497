"""A run that trains from cached features, killed anywhere, goes on to the bytes of one that was never killed."""

import random
import shutil
import time

import pytest

from convpeft.training import make_recipe
from measuring import counted, times
from tiny import recipe, write_images

FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.mark.promise("F01", "F05")
@pytest.mark.timeout(1800)
def test_run_from_features_killed_anywhere_gives_the_same_adapter(server, tmp_path):
    """Kills fall into computing the features, writing them, training from them and removing them."""
    images, draw = write_images(tmp_path / "images", count=24), random.Random(2)
    keys = {"model__pretrained": False, "method__include": ["linear"], "train__epochs": 6}
    file, whole = tmp_path / "recipe.toml", tmp_path / "whole"
    file.write_text(make_recipe(recipe(images, whole, **keys)).to_toml())
    began = time.monotonic()
    process = server.convpeft("train", "--config", file)
    assert process.wait() == 0, process.said()
    assert "trains from cached features" in process.said()
    seconds = time.monotonic() - began
    expected = [(whole / "adapter" / name).read_bytes() for name in FILES]
    for number in range(times(full=30, reduced=1)):
        out, killed = tmp_path / f"run{number}", 0
        while True:
            words = ("--resume", out) if (out / "recipe.toml").exists() else ("--config", file, "--out", out)
            process = server.convpeft("train", *words, save_every=0.02)
            status = process.wait(draw.uniform(0.2, 0.7) * seconds if not killed else 120.0)
            if status is None:
                process.kill()
                killed += 1
                counted("kills")
                continue
            assert status == 0, process.said()
            if killed:
                break
            shutil.rmtree(out)  # it was too quick: again
        assert [(out / "adapter" / name).read_bytes() for name in FILES] == expected
        left = {each.name for each in out.rglob("*") if each.suffix == ".f16" or each.name.startswith(".")}
        assert left == set()
        counted("killed runs that ended in the same bytes")
