import numpy as np
import pytest

from convpeft.evaluation import Mistake, classification_metrics
from convpeft.reporting import Figure, Notes, Table
from convpeft.reporting.sections import (
    classification_sections,
    curves_section,
    headline,
    mistakes_section,
    retention_section,
)


def metrics(k=3, *, absent=False, perfect=False):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, k - absent, 200)
    probabilities = rng.random((200, k)) * (0.0 if perfect else 1.0)
    probabilities[np.arange(200), labels] += 0.5
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return classification_metrics(probabilities, labels, [f"class {number}" for number in range(k)])


def titled(sections, title):
    (found,) = [section for section in sections if section.title == title]
    return found


def test_headline_states_accuracy_and_cost():
    measured = metrics()
    items = headline(
        measured, trainable=1234, total=11_200_000, adapter_bytes=2048, seconds=74, peak_bytes=3 * 1024**2
    ).items
    assert [item.value for item in items] == [
        f"{100 * measured.accuracy:.1f} %",
        "1,234",
        "2.0 KiB",
        "1 min 14 s",
        "3.0 MiB",
    ]
    assert "200 images" in items[0].note
    assert items[1].note == "0.011 % of 11,200,000"


def test_headline_leaves_out_what_was_not_measured():
    labels = [item.label for item in headline(metrics(), trainable=1, total=2).items]
    assert labels == ["Test accuracy", "Trainable parameters"]


def test_sections_come_in_reading_order():
    shown = Figure("Most confident mistakes", "", b"")
    titles = [section.title for section in classification_sections(metrics(), mistakes=shown)]
    assert titles == [
        "Scores",
        "Confusion matrix",
        "Most confused pairs",
        "Most confident mistakes",
        "Calibration",
        "Class by class",
    ]


def test_class_table_has_a_row_a_class():
    measured = metrics()
    table = titled(classification_sections(measured), "Class by class")
    assert [row[0] for row in table.rows] == list(measured.classes)
    assert table.rows[1][3] == f"{100 * measured.per_class[1].sensitivity:.1f} %"
    assert not table.folded


def test_a_long_class_table_is_folded():
    assert titled(classification_sections(metrics(41)), "Class by class").folded


def test_top_five_is_shown_where_it_is_defined():
    few, many = (titled(classification_sections(metrics(k)), "Scores") for k in (5, 6))
    assert "Top-5 accuracy" not in [row[0] for row in few.rows]
    assert "Top-5 accuracy" in [row[0] for row in many.rows]


def test_confused_pairs_say_how_much_they_explain():
    measured = metrics()
    table = titled(classification_sections(measured), "Most confused pairs")
    assert table.caption == f"These 3 pairs explain 100.0 % of all {measured.errors} errors."
    first = measured.confused_pairs[0]
    assert table.rows[0][1:3] == (first.first_as_second, first.second_as_first)


def test_a_single_pair_is_one_pair():
    table = titled(classification_sections(metrics(2)), "Most confused pairs")
    assert table.caption.startswith("This pair explains 100.0 %")


def test_a_perfect_model_has_no_pairs():
    titles = [section.title for section in classification_sections(metrics(perfect=True))]
    assert "Most confused pairs" not in titles


def test_absent_classes_are_warned_of():
    notes = [each for each in classification_sections(metrics(absent=True)) if isinstance(each, Notes)]
    assert [(note.warning, note.items[0].split(":")[0]) for note in notes] == [(True, "class 2")]
    assert not [each for each in classification_sections(metrics()) if isinstance(each, Notes)]


@pytest.mark.parametrize("k", [1, 2, 6])
def test_every_section_is_complete(k):
    for section in classification_sections(metrics(k)):
        assert isinstance(section, Table | Figure)
        if isinstance(section, Figure):
            assert section.image.startswith(b"\x89PNG")
            assert section.alternative


def test_curves_are_a_figure():
    section = curves_section([{"epoch": 1, "train_loss": 1.0}])
    assert section.image.startswith(b"\x89PNG")


def test_mistakes_are_captioned_with_both_classes(monkeypatch):
    seen = []

    def record(images, captions):
        seen.extend(captions)
        return plot_gallery(images, captions)

    from convpeft.reporting import plot_gallery, sections

    monkeypatch.setattr(sections, "plot_gallery", record)
    images = [np.zeros((4, 4, 1), dtype=np.uint8)] * 2
    mistakes_section([Mistake(5, 0, 1, 0.987), Mistake(6, 2, 0, 0.5)], images, ["a", "b", "a long\nclass name"])
    assert seen == ["a → b\n98.7 %", "a long\ufffdclass name\n→ a\n50.0 %"]


def test_retention_tells_identical_from_changed():
    kept = retention_section(identical=True, base_accuracy=0.8, adapted_accuracy=0.6)
    lost = retention_section(identical=False, base_accuracy=0.8, adapted_accuracy=0.6)
    assert kept.rows[0] == ("off", "80.0 %", "bit-identical to the base")
    assert kept.rows[1] == ("on, with the old head", "60.0 %", "75.0 % of the accuracy")
    assert lost.rows[0][2] == "NOT identical to the base"
