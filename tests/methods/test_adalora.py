"""AdaLoRA: start, size, importance, and how the budget moves."""

import math

import pytest
import torch
from torch import nn

import convpeft
from convpeft.adapters import Progress
from convpeft.methods.adalora import AdaLora
from convpeft.sites import Site

CONV = Site("conv", "conv", (16, 8, 3, 3))
LINEAR = Site("linear", "linear", (12, 20))


def started(site: Site, **options: object) -> AdaLora:
    part = AdaLora(site, **options)
    part.start(torch.zeros(site.shape), None, torch.Generator().manual_seed(0))
    return part


@pytest.mark.parametrize("site", [CONV, LINEAR])
def test_size_is_that_of_the_three_factors(site: Site) -> None:
    rank = 3
    assert sum(p.numel() for p in AdaLora(site, rank=rank, target_rank=2).parameters()) == rank * (
        site.out_channels + site.fan_in + 1
    )


@pytest.mark.parametrize("site", [CONV, LINEAR])
def test_sides_start_orthonormal_so_that_nothing_is_penalised(site: Site) -> None:
    part = started(site, rank=4, target_rank=2)
    assert torch.allclose(part.up.T @ part.up, torch.eye(4), atol=1e-6)
    assert torch.allclose(part.down @ part.down.T, torch.eye(4), atol=1e-6)
    assert part.penalty().item() == pytest.approx(0.0, abs=1e-9)
    assert not part.values.any()


def test_penalty_is_the_distance_from_orthonormal() -> None:
    part = started(CONV, rank=2, target_rank=1, orthogonality=0.5)
    with torch.no_grad():
        part.up.mul_(2.0)  # up' up = 4, so |4 - 1|^2 twice
    assert part.penalty().item() == pytest.approx(0.5 * 2 * 9.0, rel=1e-5)


def test_importance_follows_the_papers_averages() -> None:
    part = started(LINEAR, rank=2, target_rank=1, smoothing=0.5)
    history = {name: (0.0 * factor.detach(), 0.0 * factor.detach()) for name, factor in part._factors()}
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for name, factor in part._factors():
            factor.grad = torch.randn(factor.shape, generator=generator)
            now = (factor.detach() * factor.grad).abs()
            smooth = 0.5 * history[name][0] + 0.5 * now
            history[name] = (smooth, 0.5 * history[name][1] + 0.5 * (now - smooth).abs())
        part.measure()
    score = {name: smooth * doubt for name, (smooth, doubt) in history.items()}
    expected = [score["values"][i] + score["up"][:, i].mean() + score["down"][i].mean() for i in range(2)]
    assert torch.allclose(part.importance(), torch.stack(expected))


def test_budget_stays_falls_with_the_cube_and_stays() -> None:
    part = started(CONV, rank=8, target_rank=2.0, warmup=0.2, fixed=0.3)
    budgets = [part.budget(Progress(step, 10, 10), 80) for step in (1, 20, 45, 70, 100)]
    assert budgets == [80, 80, round(80 * (0.25 + 0.75 * 0.5**3)), 20, 20]


def test_most_important_triplets_of_all_layers_keep_their_value() -> None:
    parts = [started(CONV, rank=3, target_rank=1), started(LINEAR, rank=3, target_rank=1)]
    for part, scores in zip(parts, ([5.0, 1.0, 4.0], [3.0, 6.0, 0.5]), strict=True):
        with torch.no_grad():
            part.values.fill_(1.0)
        part.get_buffer("values_sensitivity").copy_(torch.tensor(scores))
        part.get_buffer("values_uncertainty").fill_(1.0)
    AdaLora.allocate(parts, 3)
    assert [part.values.tolist() for part in parts] == [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.Flatten(), nn.Linear(48, 2))


def run(model: nn.Module, steps: int, **leave_out: bool) -> None:
    optimizer = torch.optim.AdamW(convpeft.param_groups(model, lr=0.05))
    if not leave_out.get("plan"):
        convpeft.plan_training(model, epochs=1, steps_per_epoch=steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 3, 6, 6, generator=generator)).square().mean()
        (loss if leave_out.get("penalty") else loss + convpeft.penalty(model)).backward()
        optimizer.step()
        if not leave_out.get("after_step"):
            convpeft.after_step(model, optimizer)


def test_training_ends_at_the_target_and_stays_there() -> None:
    model = convpeft.attach(network(), "adalora", rank=4, target_rank=1.5, every=2, warmup=0.1, fixed=0.5).train()
    run(model, 20)
    parts = [module for module in model.modules() if isinstance(module, AdaLora)]
    whole = sum(len(part.values) for part in parts)
    assert sum(int(part.values.count_nonzero()) for part in parts) == round(whole * 1.5 / 4)


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("plan", r"Call convpeft\.plan_training\(model"),
        ("penalty", r"Add convpeft\.penalty\(model\) to it"),
        ("after_step", r"needs convpeft\.plan_training, convpeft\.penalty, convpeft\.after_step"),
    ],
)
def test_loop_that_leaves_a_hook_out_is_stopped(left_out: str, message: str) -> None:
    model = convpeft.attach(network(), "adalora", rank=4, target_rank=2).train()
    with pytest.raises(convpeft.ModelError, match=message):
        run(model, 4, **{left_out: True})


@pytest.mark.parametrize(
    "options",
    [
        {"target_rank": 13.0},
        {"target_rank": 0.0},
        {"warmup": 1.0},
        {"fixed": 0.95},
        {"smoothing": 1.0},
        {"orthogonality": -1.0},
        {"every": 0},
        {"rank": 0},
        {"warmup": math.nan},
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(convpeft.OptionError, match=f"{next(iter(options))}=.*out of range"):
        AdaLora(CONV, **options)
