"""The map of methods shows every method once, where its class says it belongs, and its labels can be read."""

from itertools import combinations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from convpeft.adapters import load_methods
from convpeft.models.resnet50_sites import resnet50_sites
from convpeft.planning import trainable_on
from convpeft.reporting.method_map import BESIDE, MAP, PRODUCT, SMALL, SUM, WEIGHT, draw_map, place_of

METHODS = load_methods()
SIZES = {name: trainable_on(resnet50_sites(), name) for name in METHODS}


@pytest.mark.parametrize(
    ("place", "names"),
    [
        (WEIGHT, {"full", "probe"}),
        (SMALL, {"bitfit", "norm-tuning", "ssf"}),
        (PRODUCT, {"lora", "lora-fa", "cp", "tucker", "cp-tucker", "tt", "adalora", "mlae"}),
        (SUM, {"loha", "lokr", "residual-parallel", "chapter", "lora-c", "colora", "loca"}),
        (MAP, {"dora", "glora", "fsf", "residual-serial", "tsa"}),
        (BESIDE, {"conv-adapter", "lite-residual"}),
    ],
)
def test_method_is_where_its_formula_puts_it(place: str, names: set[str]) -> None:
    assert {name for name, cls in METHODS.items() if place_of(cls) == place} == names


def test_map_shows_every_method_once_at_its_size() -> None:
    (axes,) = draw_map(METHODS, SIZES).axes
    assert {text.get_text(): text.xy[0] for text in axes.texts} == SIZES
    assert len(axes.texts) == len(SIZES)


def test_no_label_covers_another() -> None:
    figure = draw_map(METHODS, SIZES)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in figure.axes[0].texts]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
