"""What every test stands on: one thread, importable torchvision, hypothesis profiles and the real data."""

import os
from collections.abc import Generator
from pathlib import Path

# One thread, here and in processes that tests start: sums are bit-identical and workers do not compete.
# It has to be set before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "agg"
# Tests that compare bytes, and those without the mark, are about the CPU.
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CONVPEFT_GPU", "")  # the number of the GPU for those with it

import hypothesis
import pytest
import torch

# Before anything imports torchvision, which fails beside a CPU build of torch without it.
import convpeft._torchvision  # noqa: F401
import measuring

torch.set_num_threads(1)

# `ci` says the same every time; `full` looks further and prints how to repeat what it finds.
hypothesis.settings.register_profile(
    "ci",
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("quick", parent=hypothesis.settings.get_profile("ci"), max_examples=4)
hypothesis.settings.register_profile(
    "full",
    max_examples=1000,
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ci")

DATA_VARIABLE = "CONVPEFT_DATA"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what uses `data_root`, skip what takes minutes or what is not there, and note promises."""
    asked = "experiments" in config.getoption("markexpr")
    minutes = pytest.mark.skip(reason="minutes each; make experiments runs them")
    no_data = pytest.mark.skip(reason=f"{DATA_VARIABLE} is not set")
    no_gpu = pytest.mark.skip(reason="CONVPEFT_GPU is not set to the number of a GPU")
    for item in items:
        if "data_root" in getattr(item, "fixturenames", ()):
            item.add_marker("data")
        if item.get_closest_marker("data") and not os.environ.get(DATA_VARIABLE):
            item.add_marker(no_data)
        if item.get_closest_marker("experiments") and not asked:
            item.add_marker(minutes)
        promises = sorted({each for mark in item.iter_markers("promise") for each in mark.args})
        item.user_properties.append((measuring.PROMISES, promises))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(no_gpu)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Put the figures that a test notes on its way beside its outcome."""
    with measuring.collecting() as figures:
        try:
            return (yield)
        finally:
            item.user_properties.append((measuring.FIGURES, dict(figures)))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that CONVPEFT_DATA names; a name that leads nowhere is a failure, not a skip."""
    root = Path(os.environ[DATA_VARIABLE])
    if not root.is_dir():
        pytest.fail(f"{DATA_VARIABLE}={root} is not a folder")
    return root
