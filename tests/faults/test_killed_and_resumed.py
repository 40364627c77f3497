"""A run that is killed anywhere and resumed ends in the bytes of one that was never killed."""

import random
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest

from convpeft.training import make_recipe
from forking import Forked
from measuring import counted, measured, times
from tiny import recipe, write_images

FILES = ("adapter_config.json", "adapter_model.safetensors")
SAVE_EVERY = 0.02  # seconds; a checkpoint after every few batches
# Loaders that prepare batches, steps of several batches, norms and moments of an optimiser, a method with random masks.
FORMS = (
    {"train__workers": 2},
    {"train__accumulate": 2, "data__augment": "light"},
    {"train__optimizer": "sgd", "method__name": "mlae"},
)


def adapter(out: Path) -> list[bytes]:
    return [(out / "adapter" / name).read_bytes() for name in FILES]


@pytest.mark.promise("F01")
@pytest.mark.timeout(1800)
def test_run_killed_anywhere_and_resumed_gives_the_same_adapter(server, tmp_path):
    """Kills fall anywhere in the life of the command: reading, training, validating, saving, reporting."""
    images = write_images(tmp_path / "images", count=24)
    draw = random.Random(1)
    whole: list[tuple[list[bytes], float]] = []
    for number in range(times(full=50, reduced=1)):
        form = number % len(FORMS)
        values = make_recipe(recipe(images, tmp_path / f"run{number}", train__epochs=6, **FORMS[form]))
        (tmp_path / "recipe.toml").write_text(values.to_toml())
        if form == len(whole):
            began = time.monotonic()
            process = server.convpeft("train", "--config", tmp_path / "recipe.toml", "--out", tmp_path / f"whole{form}")
            assert process.wait() == 0, process.said()
            whole.append((adapter(tmp_path / f"whole{form}"), time.monotonic() - began))
        expected, seconds = whole[form]
        out, times_killed, most = tmp_path / f"run{number}", 0, draw.randint(1, 2)
        while True:
            words = ("--resume", out) if (out / "recipe.toml").exists() else ("--config", tmp_path / "recipe.toml")
            process = server.convpeft("train", *words, save_every=SAVE_EVERY)
            status = process.wait(draw.uniform(0.0, 0.9 * seconds) if times_killed < most else 120.0)
            if status is not None:
                assert status == 0, process.said()
                if times_killed:
                    break
                shutil.rmtree(out)  # it was too quick: again
                continue
            assert times_killed < most, process.said()
            process.kill()
            times_killed += 1
            counted("kills")
        assert adapter(out) == expected, f"run {number} of form {FORMS[form]}, killed {times_killed} times"
        counted("killed runs that ended in the same bytes")


@pytest.mark.promise("F03")
@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 2), (signal.SIGINT, 0)], ids=str)
def test_signal_saves_stops_and_leaves_nobody(server, tmp_path, number, workers):
    images, cut = write_images(tmp_path / "images", count=24), tmp_path / "cut"
    values = make_recipe(recipe(images, cut, train__epochs=60, train__workers=workers))
    (tmp_path / "recipe.toml").write_text(values.to_toml())
    process = server.convpeft("train", "--config", tmp_path / "recipe.toml")
    limit = time.monotonic() + 60
    while not (cut / "checkpoints" / "last").exists() and time.monotonic() < limit:
        assert process.wait(0.01) is None, process.said()
    began = time.monotonic()
    process.send(number)
    assert process.wait(60) == 128 + number, process.said()
    seconds = time.monotonic() - began
    measured("seconds from signal to end", seconds)
    assert seconds < 10
    assert process.has_left_nobody(1.0)
    assert f"stopped by {number.name} " in process.said()
    assert not list(cut.rglob(".*"))
    again = server.convpeft("train", "--resume", cut)
    assert again.wait(0.5) is None, again.said()  # it goes on: a refusal would end it at once
    again.kill()


@pytest.mark.promise("F03")
@pytest.mark.parametrize("hit", ["second", "first"][: times(full=2, reduced=1)])
def test_several_processes_stop_at_the_same_batch_and_go_on_together(server, tmp_path, hit):
    """The signal reaches one of them only; both stop, and the end is that of a run without it."""
    images = write_images(tmp_path / "images", count=24)

    def together(*words: object, save_every: float | None = None) -> list[Forked]:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = str(listener.getsockname()[1])
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks = [{"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
        return [server.convpeft("train", *words, save_every=save_every, **shared, **rank) for rank in ranks]

    for name in ("whole", "cut"):
        values = make_recipe(recipe(images, tmp_path / name, train__epochs=8, method__name="mlae"))
        (tmp_path / f"{name}.toml").write_text(values.to_toml())
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for process in together("--config", tmp_path / "whole.toml"):
        assert process.wait() == 0, process.said()
    processes = together("--config", tmp_path / "cut.toml", save_every=0.05)
    limit = time.monotonic() + 60
    while not (cut / "checkpoints" / "last").exists() and time.monotonic() < limit:
        assert processes[0].wait(0.01) is None, processes[0].said()
    began = time.monotonic()
    processes[hit == "second"].send(signal.SIGTERM)
    for process in processes:
        assert process.wait(30) == 143, [each.said() for each in processes]
    seconds = time.monotonic() - began
    measured("seconds from signal to end of both", seconds)
    assert seconds < 10
    assert all(process.has_left_nobody(1.0) for process in processes)
    assert [each.said().count("stopped by SIGTERM in epoch") for each in processes] == [1, 0]
    for process in together("--resume", cut):
        assert process.wait() == 0, process.said()
    assert adapter(cut) == adapter(whole)
