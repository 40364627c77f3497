"""Optuna is asked for only where something is tuned, and its absence is one line; its journal holds each trial once."""

import pytest

from convpeft.comparing import driving, study
from convpeft.comparing.cells import Range, Study
from convpeft.errors import RunError
from convpeft.training.recipe import make_recipe

RECIPE = make_recipe({"model": {"source": "small-cnn"}, "data": {"source": "glyphs:digits"}})
LR = Study(RECIPE, {"train.lr": Range(1e-3, 1e-1)}, 3)


def row(number: int, accuracy: float | None, loss: float = 1.0):
    found = {"kind": "trial", "key": LR.trial_key(number), "tuned": LR.point(number)}
    if accuracy is None:
        return found | {"status": "failed", "error": "diverged"}
    return found | {"status": "done", "val_accuracy": accuracy, "val_loss": loss}


def test_missing_optuna_is_one_line_with_the_remedy(monkeypatch):
    monkeypatch.setattr(study, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"needs the package optuna. Install it with pip install 'convpeft\[sweep\]'"):
        study.check_optuna()


def test_best_trial_is_the_most_accurate_then_the_one_of_the_lowest_loss():
    rows = {each["key"]: each for each in (row(0, 0.5), row(1, 0.7, 2.0), row(2, 0.7, 1.0))}
    assert study.best_trial(LR, rows) == row(2, 0.7, 1.0)


def test_a_study_of_failures_has_no_best():
    assert study.best_trial(LR, {row(number, None)["key"]: row(number, None) for number in range(3)}) is None


def test_journal_holds_each_trial_once(tmp_path):
    optuna = pytest.importorskip("optuna")
    for number, accuracy in ((0, 0.5), (1, 0.9), (1, 0.9), (2, None)):
        study.keep_trial(tmp_path, LR, row(number, accuracy))
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / study.JOURNAL))
    found = optuna.load_study(study_name=LR.key, storage=optuna.storages.JournalStorage(backend))
    assert [trial.state.name for trial in found.trials] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert found.best_trial.params == LR.point(1)


def test_a_run_that_could_not_be_recorded_ends_the_comparison(tmp_path):
    class Ended:
        exitcode, sentinel = driving.BROKEN, None

    crew = driving._Crew()
    crew.running[Ended()] = driving.Job("a", "a", "key")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driving, "wait", lambda *_, **__: [])
        with pytest.raises(RunError, match=r"a run could not be recorded. What it said is in"):
            driving._reap(crew, tmp_path, driving._Stop())
