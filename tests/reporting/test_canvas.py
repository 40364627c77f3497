import subprocess
import sys

import pytest

from convpeft.errors import OptionError
from convpeft.reporting import figure_bytes, save_figure
from convpeft.reporting.canvas import new_figure, style_axes


def example():
    figure = new_figure(2, 2)
    axes = figure.subplots()
    style_axes(axes, title="$\\frac{unclosed 日本 العربية", x="x")
    axes.plot([1, 2, 3], clip_on=True)
    return figure


@pytest.mark.parametrize("form", ["png", "svg"])
def test_equal_figures_give_equal_bytes(form):
    assert figure_bytes(example(), form=form) == figure_bytes(example(), form=form)


@pytest.mark.parametrize(("form", "words"), [("png", [b"Software", b"tIME"]), ("svg", [b"<dc:date>", b"Matplotlib v"])])
def test_figure_names_no_time_and_no_version(form, words):
    content = figure_bytes(example(), form=form)
    assert not [word for word in words if word in content]


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".PNG", b"\x89PNG"), (".svg", b"<?xml")])
def test_suffix_chooses_the_form(tmp_path, suffix, start):
    path = tmp_path / f"figure{suffix}"
    save_figure(example(), path)
    assert path.read_bytes().startswith(start)


def test_another_suffix_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(OptionError, match=r"expected the form png or svg, got 'pdf'. Name the file .png or .svg"):
        save_figure(example(), tmp_path / "figure.pdf")
    assert list(tmp_path.iterdir()) == []


def test_reporting_imports_nothing_heavy():
    code = "import sys, convpeft.reporting; print({'torch', 'matplotlib', 'jinja2'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


def test_figures_touch_no_pyplot():
    code = (
        "import sys; from convpeft.reporting import plot_curves, figure_bytes; "
        "figure_bytes(plot_curves([{'epoch': 1, 'train_loss': 1.0}])); print('matplotlib.pyplot' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
