"""Base models: where they come from, their weights, and how their images are prepared."""

from convpeft.models.from_compressed import load_compressed
from convpeft.models.from_file import from_adapter
from convpeft.models.loading import load_model, model_sources, notes_of, preprocessing_of, rebuild, source_of
from convpeft.models.preprocessing import Preprocessing
from convpeft.models.source import ModelSource

__all__ = [
    "ModelSource",
    "Preprocessing",
    "from_adapter",
    "load_compressed",
    "load_model",
    "model_sources",
    "notes_of",
    "preprocessing_of",
    "rebuild",
    "source_of",
]
