import pytest

from convpeft.errors import OptionError
from convpeft.reporting import TradeoffPoint, figure_bytes, plot_tradeoff

POINTS = [
    TradeoffPoint("full", 400_000, 0.95, 0.94, 0.96),
    TradeoffPoint("head", 2_000, 0.85, 0.84, 0.86),
    TradeoffPoint("lora", 20_000, 0.94, 0.93, 0.95),
    TradeoffPoint("poor", 30_000, 0.90, 0.89, 0.91),
]


def labels(figure):
    return {text.get_text(): text for text in figure.axes[0].texts}


def test_front_joins_points_no_smaller_one_reaches():
    line = plot_tradeoff(POINTS).axes[0].lines[0]
    assert line.get_xdata().tolist() == [2_000, 20_000, 400_000]
    assert line.get_ydata().tolist() == pytest.approx([85.0, 94.0, 95.0])


def test_axis_is_logarithmic():
    assert plot_tradeoff(POINTS).axes[0].get_xscale() == "log"


def test_every_point_has_its_label():
    assert set(labels(plot_tradeoff(POINTS))) == {"full", "head", "lora", "poor"}


def test_labels_cover_no_other():
    close = [TradeoffPoint(f"method number {n}", 20_000 + 300 * n, 0.9 + 0.0002 * n, 0.89, 0.91) for n in range(5)]
    boxes = [text.get_window_extent() for text in labels(plot_tradeoff(close)).values()]
    assert not [(a, b) for a in boxes for b in boxes if a is not b and a.overlaps(b)]


def test_a_model_used_as_it_is_becomes_a_line():
    base = TradeoffPoint("base", 0, 0.86, 0.85, 0.87)
    figure = plot_tradeoff([*POINTS, base])
    assert "base: 86.0 %" in labels(figure)
    assert [86.0, 86.0] in [list(line.get_ydata()) for line in figure.axes[0].lines]


def test_a_base_far_below_does_not_squeeze_the_others():
    base = TradeoffPoint("base", 0, 0.1, 0.1, 0.1)
    figure = plot_tradeoff([*POINTS, base])
    assert "base: 10.0 %, far below" in labels(figure)
    assert figure.axes[0].get_ylim()[0] > 50


@pytest.mark.parametrize(
    "points",
    [
        [TradeoffPoint("base", 0, 0.5, 0.4, 0.6)],
        [TradeoffPoint("one", 10, 0.5, 0.5, 0.5)],
        [TradeoffPoint("outside its interval", 10, 0.5, 0.6, 0.7)],
        [TradeoffPoint("$\\frac{ <script> \udcff\x00 日本語" * 5, 10, 0.5, 0.4, 0.6)],
    ],
)
def test_odd_points_render(points):
    assert figure_bytes(plot_tradeoff(points)).startswith(b"\x89PNG")


def test_no_points_are_refused():
    with pytest.raises(OptionError, match=r"expected at least one point, got none\. Pass one point a method"):
        plot_tradeoff([])
