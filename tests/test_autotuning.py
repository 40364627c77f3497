"""Kernels are measured once for each shape, the fastest is chosen, and measuring leaves no trace on the model."""

import json

import pytest
import torch
from torch import Tensor, nn

import convpeft
from contract.networks import randomise
from convpeft import autotuning
from convpeft.autotuning import autotune, cache_path
from convpeft.errors import ModelError
from convpeft.injection import state_of

IMAGES = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    same = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)]  # one shape, measured once
    norm, live = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm, same[0], nn.Dropout(), live, same[1], nn.Conv2d(8, 4, 1))


def adapted(method: str = "lora", **options) -> nn.Module:
    return randomise(convpeft.attach(network().eval(), method, **options), 1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "convpeft" / "kernels.json"


class Clock:
    """Stands in for the clock: the kernels' times by turns, and how often it was asked."""

    def __init__(self, monkeypatch, times=(3.0, 1.0, 2.0, 4.0)) -> None:
        self.times, self.asked = times, 0
        monkeypatch.setattr(autotuning, "_seconds", self)

    def __call__(self, call, device) -> float:
        call()
        self.asked += 1
        return self.times[(self.asked - 1) % 4]  # weight, side, hybrid, fused


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


SHAPES = 2
ASKED = SHAPES * 4 * (autotuning._ROUNDS + 1)
SITES = {"0", "2", "5"}  # the last one is the classifier


def test_fastest_kernel_is_chosen_and_computes_the_next_step(monkeypatch):
    names = ("weight", "side", "hybrid", "fused")
    for best in names:
        times = tuple(1.0 if name == best else 3.0 for name in names)
        Clock(monkeypatch, times)
        cache_path().unlink(missing_ok=True)
        model = adapted()
        plan = autotune(model, IMAGES)
        assert dict(plan.sites) == dict.fromkeys(SITES, best)
        model.train()(IMAGES)
        taken = convpeft.kernels_of(model).sites
        assert {path: taken[path] for path in SITES} == dict.fromkeys(SITES, best)


def test_median_counts_and_not_the_best_or_the_worst(monkeypatch):
    """Side is the fastest once and the slowest once; on the whole it is not."""
    warm, rest = [9.0, 9.0, 9.0, 9.0], [2.0, 4.0, 3.0, 3.0]
    times = iter([*warm, *[2.0, 0.1, 3.0, 3.0], *[2.0, 50.0, 3.0, 3.0], *3 * rest] * SHAPES)
    monkeypatch.setattr(autotuning, "_seconds", lambda call, device: next(times))
    assert set(autotune(adapted(), IMAGES).sites.values()) == {"weight"}


@pytest.mark.parametrize(("usual", "times"), [(True, (1.0, 1.2, 1.04, 1.2)), (False, (1.04, 1.2, 1.0, 1.2))])
def test_usual_kernel_is_kept_where_the_gain_may_be_chance(monkeypatch, usual, times):
    monkeypatch.setattr("convpeft.kernels.running._pays", lambda *_, **__: usual)
    Clock(monkeypatch, times)
    assert set(autotune(adapted(), IMAGES).sites.values()) == {"hybrid" if usual else "weight"}


def test_layers_of_one_shape_are_measured_once(clock):
    autotune(adapted(), IMAGES)
    assert clock.asked == ASKED


def test_measurements_are_used_again_in_another_process(clock, cache):
    first = autotune(adapted(), IMAGES)
    again = autotune(adapted(), IMAGES)
    assert clock.asked == ASKED
    assert again == first
    assert len(json.loads(cache.read_text())) == SHAPES


@pytest.mark.parametrize(
    "what", ["batch", "size", "rank", "type", "threads", "torch", "convpeft", "layout", "autocast"]
)
def test_what_times_depend_on_is_measured_anew(clock, monkeypatch, what):
    autotune(adapted(), IMAGES)
    model, images = adapted(rank=3 if what == "rank" else 8), IMAGES
    if what == "batch":
        images = images[:2]
    elif what == "size":
        images = images[..., :10]
    elif what == "type":
        model, images = model.double(), images.double()
    elif what == "layout":
        convpeft.set_kernels(model, layout="contiguous")
    elif what == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    elif what == "torch":
        monkeypatch.setattr(torch, "__version__", "1.0")
    elif what == "convpeft":
        monkeypatch.setattr(autotuning, "__version__", "0.0")
    with torch.autocast("cpu", torch.bfloat16, enabled=what == "autocast"):
        autotune(model, images)
    assert clock.asked > ASKED


def test_measurements_of_another_shape_are_kept(clock, cache):
    autotune(adapted(), IMAGES)
    autotune(adapted(), IMAGES[:2])
    autotune(adapted(), IMAGES)
    assert clock.asked == 2 * ASKED
    assert len(json.loads(cache.read_text())) == 2 * SHAPES


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    grads = {f"{name}.grad": each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {name: each.detach().clone() for name, each in (tensors | grads).items()}


@pytest.mark.parametrize("method", ["lora", "mlae"])
@pytest.mark.parametrize("norm", ["frozen", "train"])
def test_measuring_leaves_no_trace(method, norm):
    model = adapted(method, norm=norm)
    model.train()[3].eval()
    model(IMAGES).sum().backward()
    torch.manual_seed(9)
    before, modes = whole_state(model), [each.training for each in model.modules()]
    versions = [each._version for each in (*model.parameters(), *model.buffers())]
    buffers, random_state, images = [id(each) for each in model.buffers()], torch.get_rng_state(), IMAGES.clone()
    hooks = [len(each._forward_pre_hooks) + len(each._forward_hooks) for each in model.modules()]
    autotune(model, IMAGES)
    after = whole_state(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(each, after[name]) for name, each in before.items())
    assert versions == [each._version for each in (*model.parameters(), *model.buffers())]
    assert buffers == [id(each) for each in model.buffers()]
    assert modes == [each.training for each in model.modules()]
    assert hooks == [len(each._forward_pre_hooks) + len(each._forward_hooks) for each in model.modules()]
    assert torch.equal(random_state, torch.get_rng_state())
    assert torch.equal(images, IMAGES)


def test_what_was_asked_for_stays(clock):
    model = adapted()
    convpeft.set_kernels(model, kernel="weight", layout="contiguous", fold=False)
    plan = autotune(model, IMAGES)
    computing = state_of(model).computing
    assert (computing.kernel, computing.layout, computing.fold) == ("weight", "contiguous", False)
    assert (plan.kernel, plan.layout, plan.fold) == ("weight", "contiguous", False)
    assert plan.sites == computing.forced


@pytest.mark.parametrize("method", ["lora-fa", "dora", "bitfit", "lora+ssf"])
def test_layers_without_a_choice_are_left_as_they_are(clock, method):
    model = adapted(method)
    assert autotune(model, IMAGES).sites == {}
    assert clock.asked == 0
    assert not cache_path().exists()


def test_gradients_after_tuning_are_those_of_the_definition(clock):
    model, plain = adapted(), adapted()
    autotune(model, IMAGES)
    convpeft.set_kernels(plain, kernel="weight", fold=False)
    for each in (model, plain):
        each[3].p = 0.0
        each.train()(IMAGES).square().sum().backward()
    for one, other in zip(convpeft.trainable_parameters(model), convpeft.trainable_parameters(plain), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"a": 1}',
        b'{"a": {"weight": 1.0, "side": 2.0}}',
        b'{"a": {"weight": 1.0, "side": 2.0, "hybrid": "fast", "fused": 1.0}}',
        b'{"a": {"weight": 1.0, "side": 2.0, "hybrid": NaN, "fused": 1.0}}',
        b'{"a": {"weight": 1.0, "side": 2.0, "hybrid": -1.0, "fused": 1.0}}',
        b'{"a": {"weight": 1.0, "side": 2.0, "hybrid": 1.0, "fastest": 1.0}}',
        b"[" * 100_000,
    ],
    ids=lambda content: content[:60],
)
def test_damaged_cache_is_said_and_replaced(clock, cache, content):
    cache.parent.mkdir()
    cache.write_bytes(content)
    with pytest.warns(UserWarning, match=r"kernels.json: cannot be used \(.*\). Kernels are measured anew."):
        autotune(adapted(), IMAGES)
    assert clock.asked == ASKED
    autotune(adapted(), IMAGES)
    assert clock.asked == ASKED


def test_cache_that_is_too_large_is_not_read(clock, cache, monkeypatch):
    monkeypatch.setattr(autotuning, "_LARGEST", 10)
    autotune(adapted(), IMAGES)
    with pytest.warns(UserWarning, match="it is too large"):
        autotune(adapted(), IMAGES)


def test_cache_that_cannot_be_written_is_said(clock, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning) as caught:
        plan = autotune(adapted(), IMAGES)
    assert any("cannot be written" in str(each.message) for each in caught)
    assert set(plan.sites) == SITES


def test_cache_is_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_path() == tmp_path / "home" / ".cache" / "convpeft" / "kernels.json"


def test_progress_is_told(clock):
    told = []
    autotune(adapted(), IMAGES, told=lambda done, total: told.append((done, total)))
    assert told == [(0, SHAPES), (1, SHAPES), (SHAPES, SHAPES)]
    autotune(adapted(), IMAGES, told=lambda done, total: told.append((done, total)))
    assert len(told) == SHAPES + 1


def test_images_that_the_model_cannot_take_are_refused():
    with pytest.raises(ModelError, match=r"the model does not run on images \(2, 5, 8, 8\)"):
        autotune(adapted(), torch.ones(2, 5, 8, 8))


def test_model_without_adapters_is_refused():
    with pytest.raises(ModelError, match="no adapter is attached"):
        autotune(network(), IMAGES)


@pytest.mark.gpu
def test_autotune_measures_on_a_gpu(cache):
    model = adapted().cuda()
    plan = autotune(model, IMAGES.cuda())
    assert set(plan.sites) == SITES
    assert all(0 < value < 10 for times in json.loads(cache.read_text()).values() for value in times.values())
