"""The tuning of an arm: trials measured on validation, kept in Optuna's journal beside the results."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convpeft.comparing.cells import Range, Study
from convpeft.errors import RunError

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

JOURNAL = "tuning.log"


def check_optuna() -> None:
    """Refuse to begin a tuning that could not be kept.

    Raises:
        RunError: If Optuna is not installed.
    """
    if find_spec("optuna") is None:
        raise RunError("[tune] needs the package optuna. Install it with pip install 'convpeft[sweep]'.")


def best_trial(study: Study, rows: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The trial of the highest validation accuracy, among equals that of the lowest loss; None where all failed."""
    tried = [rows[key] for number in range(study.trials) if (key := study.trial_key(number)) in rows]
    done = [row for row in tried if row["status"] == "done"]
    return max(done, key=lambda row: (row["val_accuracy"], -row["val_loss"]), default=None)


def keep_trial(out: Path, study: Study, row: Mapping[str, Any]) -> None:
    """Write a trial into the journal, once, whichever process has computed it."""
    import optuna
    from optuna.trial import TrialState, create_trial

    kept = _open(out, study)
    if any(trial.user_attrs.get("key") == row["key"] for trial in kept.get_trials(deepcopy=False)):
        return
    done = row["status"] == "done"
    if done:
        state, value = TrialState.COMPLETE, float(row["val_accuracy"])
    else:
        state, value = TrialState.FAIL, None
    kept.add_trial(
        create_trial(
            state=state,
            value=value,
            params=dict(row["tuned"]),
            distributions={name: _distribution(optuna, each) for name, each in study.ranges.items()},
            user_attrs={"key": row["key"], "val_loss": row.get("val_loss"), "error": row.get("error")},
        )
    )


def _open(out: Path, study: Study) -> optuna.Study:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(logging.WARNING)
    backend = JournalFileBackend(str(out / JOURNAL))
    return optuna.create_study(
        storage=JournalStorage(backend), study_name=study.key, direction="maximize", load_if_exists=True
    )


def _distribution(optuna: Any, each: Range) -> BaseDistribution:
    if each.choices:
        return optuna.distributions.CategoricalDistribution(each.choices)
    # a point is rounded to three figures, which may lie just outside
    low, high = (math.nextafter(each.at(place), side) for place, side in ((0.0, -math.inf), (1.0, math.inf)))
    return optuna.distributions.FloatDistribution(min(low, each.low), max(high, each.high), log=each.log)
