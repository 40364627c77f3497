"""Evaluation: what a model answers, how good it is, and how sure that is."""

from convpeft.evaluation.calibration import CalibrationBin
from convpeft.evaluation.classification import ClassificationMetrics, ClassScores, classification_metrics
from convpeft.evaluation.confusion import ConfusedPair, Mistake, errors_most_confident
from convpeft.evaluation.decathlon import decathlon_score
from convpeft.evaluation.detecting import (
    SeedDifference,
    describe_seed_difference,
    detectable_over_pairs,
    detectable_over_seeds,
    mean_interval,
    seed_difference,
)
from convpeft.evaluation.pairing import Difference, describe_difference, mcnemar, paired_difference
from convpeft.evaluation.predicting import Predictions, predict_logits
from convpeft.evaluation.probing import features_of, probe_accuracy
from convpeft.evaluation.retention import agreement, is_retained, retention
from convpeft.evaluation.sequential import SequenceScores, sequence_scores
from convpeft.evaluation.statistics import (
    bootstrap_interval,
    mean_and_deviation,
    minimum_detectable_effect,
    wilson_interval,
)

__all__ = [
    "CalibrationBin",
    "ClassScores",
    "ClassificationMetrics",
    "ConfusedPair",
    "Difference",
    "Mistake",
    "Predictions",
    "SeedDifference",
    "SequenceScores",
    "agreement",
    "bootstrap_interval",
    "classification_metrics",
    "decathlon_score",
    "describe_difference",
    "describe_seed_difference",
    "detectable_over_pairs",
    "detectable_over_seeds",
    "errors_most_confident",
    "features_of",
    "is_retained",
    "mcnemar",
    "mean_and_deviation",
    "mean_interval",
    "minimum_detectable_effect",
    "paired_difference",
    "predict_logits",
    "probe_accuracy",
    "retention",
    "seed_difference",
    "sequence_scores",
    "wilson_interval",
]
