"""The card: what the hub's own parser reads in it, figures against scikit-learn, coverage, hostile names."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from sklearn.metrics import balanced_accuracy_score, f1_score

from convpeft.adapter_file import AdapterFile
from convpeft.deployment.card_facts import CardFacts, TestFigures, read_facts
from convpeft.deployment.model_card import model_card
from convpeft.hub_address import HubAddress

ADDRESS = HubAddress("me/bars", "0" * 40)
HOSTILE = '</td><script>alert(1)</script>|`$x$`\n---\n# [x](javascript:y)"\\'
LEAST_COVERED = 0.92  # share of 95 % intervals that hold the truth, over 400 draws


@pytest.fixture
def facts(bars: Path) -> CardFacts:
    return read_facts(bars)


def front_matter(card: str) -> ModelCard:
    return ModelCard(card)


def changed(facts: CardFacts, **fields: object) -> CardFacts:
    file = AdapterFile(facts.file.path, facts.file.config | fields, facts.file.tensors)
    return dataclasses.replace(facts, file=file)


def test_hub_reads_the_figures_of_the_run_in_the_front_matter(facts: CardFacts, bars: Path) -> None:
    card = ModelCard(model_card(facts, ADDRESS))
    measured = json.loads((bars / "metrics.json").read_text())["test"]
    read = {result.metric_type: result.metric_value for result in card.data.eval_results}
    expected = {"accuracy": "accuracy", "balanced_accuracy": "balanced_accuracy", "f1": "macro_f1"}
    assert read == {kind: pytest.approx(measured[key], abs=1e-6) for kind, key in expected.items()}
    assert {result.task_type for result in card.data.eval_results} == {"image-classification"}
    assert card.data.library_name == "convpeft"
    assert {"convpeft", "lora", "peft"} <= set(card.data.tags)


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ({"source": "timm/resnet18.a1_in1k", "pretrained": True, "weights": None}, "timm/resnet18.a1_in1k"),
        ({"source": "timm/resnet18.a1_in1k", "pretrained": True, "weights": "w.pth"}, None),
        ({"source": "timm/resnet18.a1_in1k", "pretrained": False, "weights": None}, None),
        ({"source": "timm/resnet18", "pretrained": True, "weights": None}, None),
        ({"source": "torchvision/resnet18:DEFAULT", "pretrained": True, "weights": None}, None),
        (None, None),
    ],
)
def test_base_is_linked_only_where_the_hub_has_it(facts: CardFacts, model: object, base: str | None) -> None:
    assert ModelCard(model_card(changed(facts, model=model), ADDRESS)).data.base_model == base


def test_card_tells_what_a_reader_needs(facts: CardFacts) -> None:
    card = model_card(facts, ADDRESS)
    for words in (
        facts.file.config["base"]["fingerprint"],
        "](confusion.png)",
        "## Intended use and limits",
        f'convpeft.from_adapter("hf://me/bars@{"0" * 40}").eval()',
        f"convpeft predict hf://me/bars@{'0' * 40} image.png",
        'source = "small-cnn"',
        "12 train, 6 val, 6 test",
        "7,701 (1.8 % of the base's 421,642)",
    ):
        assert words in card


def test_weights_file_is_named_without_its_folder(facts: CardFacts) -> None:
    model = {"source": "mobilenetv1/0.75", "weights": "/home/somebody/net.safetensors", "pretrained": True}
    card = model_card(dataclasses.replace(changed(facts, model=model), recipe=None), ADDRESS)
    assert 'weights="net.safetensors").eval()' in card
    assert "--weights net.safetensors" in card
    assert "/home/somebody" not in card


@pytest.mark.parametrize("model", [None, {"source": "my.nets:small", "weights": None, "pretrained": True}])
def test_base_of_somebody_s_own_code_is_loaded_by_them(facts: CardFacts, model: object) -> None:
    card = model_card(changed(facts, model=model), ADDRESS)
    assert 'convpeft.load(base, "hf://me/bars@' in card
    assert "from_adapter" not in card
    assert "convpeft predict" not in card


def test_duplicates_are_told_before_the_figures(facts: CardFacts) -> None:
    card = model_card(dataclasses.replace(facts, duplicates=3), ADDRESS)
    assert card.index("3 images occur in two splits") < card.index("| accuracy |")


@pytest.mark.promise("S04")
def test_hostile_names_stay_text(facts: CardFacts) -> None:
    names = (HOSTILE, "\u202eevil", "x\x1b[2J")
    assert facts.figures is not None
    told = dataclasses.replace(
        changed(facts, classes=list(names), method=HOSTILE),
        figures=TestFigures(names, facts.figures.confusion),
        notes=names,
        command=("convpeft", "```", HOSTILE),
    )
    card = model_card(told, ADDRESS)
    body = card.split("---\n", 2)[2]
    outside = "".join(part for number, part in enumerate(body.split("````")) if number % 2 == 0)
    assert "<script>" not in outside
    assert "](javascript" not in outside
    assert "\u202e" not in card
    assert "\x1b" not in card
    assert ModelCard(card).data.library_name == "convpeft"
    rows = [line for line in body.splitlines() if line.startswith("| ") and "script" in line and " % [" in line]
    assert [row.replace("\\|", "").count("|") for row in rows] == [4]


def random_figures(rng: np.random.Generator, size: int) -> TestFigures:
    return TestFigures(tuple(f"class {k}" for k in range(size)), rng.integers(0, 30, (size, size)))


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    figures = random_figures(rng, int(rng.integers(2, 9)))
    true, called = (
        np.repeat(indices.ravel(), figures.confusion.ravel()) for indices in np.indices(figures.confusion.shape)
    )
    found = {name: value for name, (value, _) in figures.summary().items()}
    assert found["accuracy"] == pytest.approx((true == called).mean(), abs=1e-12)
    assert found["balanced accuracy"] == pytest.approx(balanced_accuracy_score(true, called), abs=1e-12)
    assert found["macro F1"] == pytest.approx(f1_score(true, called, average="macro"), abs=1e-12)


def test_class_without_test_images_is_left_out() -> None:
    figures = TestFigures(("a", "b", "none"), np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    assert figures.summary()["balanced accuracy"][0] == pytest.approx((3 / 4 + 1) / 2)
    assert [name for name, *_ in figures.sensitivities()] == ["a", "b"]


def test_interval_without_a_mistake_is_not_sure() -> None:
    figures = TestFigures(("a", "b"), np.diag([5, 5]))
    for value, (low, high) in figures.summary().values():
        assert value == 1.0
        assert low < 0.95
        assert high == pytest.approx(1.0)


@pytest.mark.parametrize(("sizes", "right"), [((20, 20, 20), 0.9), ((100, 30, 10), 0.8), ((50,) * 6, 0.97)])
def test_intervals_hold_the_truth_as_often_as_they_say(sizes: tuple[int, ...], right: float) -> None:
    rng, size = np.random.default_rng(0), len(sizes)
    rates = np.full((size, size), (1 - right) / (size - 1))
    np.fill_diagonal(rates, right)
    expected = rates * np.array(sizes)[:, None]
    truth = TestFigures(tuple(map(str, range(size))), np.round(expected * 10**6).astype(np.int64)).summary()
    held = dict.fromkeys(truth, 0)
    for _ in range(400):
        drawn = np.stack([rng.multinomial(n, row) for n, row in zip(sizes, rates, strict=True)])
        for name, (_, (low, high)) in TestFigures(tuple(map(str, range(size))), drawn).summary().items():
            held[name] += low <= truth[name][0] <= high
    for name, times in held.items():
        assert times / 400 >= LEAST_COVERED, name
