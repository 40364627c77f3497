"""The search finds the smallest ranks of an accuracy that grows with them, and leaves the network as it was."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convpeft.compression import smallest
from convpeft.compression.searching import Layer, Search, largest_rank, largest_width, tucker_ranks, widen
from convpeft.decompositions import METHODS, Thin, size_of


@given(least=st.integers(1, 300), most=st.integers(1, 300))
def test_bisection_finds_the_smallest_number_that_passes(least, most):
    asked: list[int] = []
    found = smallest(lambda n: bool(asked.append(n)) or n >= least, most)
    assert found == (least if least <= most else None)
    assert len(asked) <= most.bit_length() + 1
    assert len(set(asked)) == len(asked)


@given(least=st.integers(1, 300), most=st.integers(1, 300), candidates=st.integers(1, 40))
def test_bisection_over_candidates_passes_and_its_left_neighbour_does_not(least, most, candidates):
    found = smallest(lambda n: n >= least, most, candidates=candidates)
    if least > most:
        assert found is None
    else:
        assert least <= found < least + -(-most // min(candidates, most))


def test_bisection_of_nothing_finds_nothing():
    assert smallest(lambda n: True, 0) is None


def layer(method: str, out: int = 8, into: int = 6, size: int = 3) -> Layer:
    torch.manual_seed(0)
    return Layer("0", nn.Conv2d(into, out, size), method)


@pytest.mark.parametrize("shape", [(8, 6, 3), (64, 64, 3), (5, 1, 3), (4, 4, 2), (96, 3, 7)])
def test_largest_rank_is_the_last_that_saves(shape):
    found = layer("cpd", *shape)
    most = largest_rank(found, ())
    assert most == 0 or found.saves((most,))
    assert not found.saves((most + 1,))
    width, (out, into) = largest_width(layer("tucker", *shape)), shape[:2]
    bases = layer("tucker", *shape)
    assert width == 0 or bases.saves(tucker_ranks(out, into, width))
    assert width == max(out, into) or not bases.saves(tucker_ranks(out, into, width + 1))


@pytest.mark.parametrize(("method", "ranks"), [("cpd", (3,)), ("tucker", (2, 2)), ("tucker-cpd", (4, 3, 2))])
def test_widening_ends_at_the_whole_layer(method, ranks):
    found = [widen(layer(method, 16, 12), ranks, step / 16) for step in range(17)]
    assert found[0] == ranks
    assert found[-1] is None
    sizes = [size_of((16, 12, 3, 3), Thin(METHODS[method], each)) for each in found if each is not None]
    assert sizes == sorted(sizes)
    assert sizes[-1] < 16 * 12 * 9


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())


def terms_of(model: nn.Module) -> list[int]:
    """Terms of each convolution, as many as it can have where it is whole."""
    return [each[0].out_channels if isinstance(each, nn.Sequential) else 1000 for each in (model[0], model[2])]


def searched(accuracy, method: str = "cpd", **options) -> Search:
    model = network()
    return Search(model, {path: Layer(path, model[int(path)], method) for path in ("0", "2")}, accuracy, **options)


def test_layer_alone_gets_the_smallest_rank_of_a_monotone_accuracy():
    def accuracy(model: nn.Module) -> float:
        first, second = terms_of(model)
        return 0.9 if first >= 5 and second >= 11 else 0.5

    search = searched(accuracy)
    assert search.alone("0", 0.1) == (5,)
    assert search.alone("2", 0.1) == (11,)


def test_layer_that_no_rank_saves_within_the_drop_stays_whole():
    search = searched(lambda model: float(terms_of(model)[0] == 1000))
    assert search.alone("0", 0.5) is None
    assert search.together(0.5) == {"2": (1,)}


def additive(model: nn.Module) -> float:
    """Each layer loses a hundredth a term that it lacks of ten: alone six terms lose four, both together eight."""
    return 1.0 - sum(0.01 * max(10 - terms, 0) for terms in terms_of(model))


def test_layers_together_stay_within_the_drop_though_each_alone_uses_it_up():
    search = searched(additive)
    assert search.alone("0", 0.045) == (6,)
    both = search.together(0.045)
    assert search.measure({"0": (6,), "2": (6,)}) < 1 - 0.045
    assert both == {"0": (8,), "2": (8,)}  # half of the drop each
    assert search.measure(both) >= 1 - 0.045


def test_layers_that_lose_nothing_alone_but_much_together_are_widened():
    def accuracy(model: nn.Module) -> float:
        first, second = terms_of(model)
        return 1.0 if max(first, second) == 1000 or first + second >= 20 else 0.0

    search = searched(accuracy)
    found = search.together(0.01)
    assert search.measure(found) == 1.0
    assert sum(ranks[0] for ranks in found.values()) < 40


def test_network_is_given_back_whole_when_nothing_passes():
    search = searched(lambda model: float(terms_of(model) == [1000, 1000]))
    assert search.together(0.01) == {}


def test_tucker_cpd_searches_the_bases_and_then_the_terms():
    def accuracy(model: nn.Module) -> float:
        part = model[0]
        if not isinstance(part, nn.Sequential):
            return 1.0
        if len(part) == 3:  # Tucker alone
            return 1.0 if part[1].out_channels >= 4 else 0.0
        return 1.0 if part[1].out_channels >= 9 else 0.0

    assert searched(accuracy, "tucker-cpd").alone("0", 0.1) == (4, 3, 9)


def test_trials_leave_the_network_as_it_was_also_when_one_fails():
    model = network()
    before = copy.deepcopy(model.state_dict())
    layers = {path: Layer(path, model[int(path)], "cpd") for path in ("0", "2")}
    own = [model[0], model[2]]
    search = Search(model, layers, lambda model: 1.0)
    search.together(0.1)

    def failing(model: nn.Module) -> float:
        raise ZeroDivisionError

    search._accuracy = failing
    with pytest.raises(ZeroDivisionError):
        search.measure({"0": (2,), "2": (3,)})
    assert model[0] is own[0]
    assert model[2] is own[1]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_rank_is_measured_once():
    search = searched(additive)
    search.alone("0", 0.03)
    before = search.trials
    search.alone("0", 0.03)
    assert search.trials == before
