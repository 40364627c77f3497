"""Before a run: find the data, build the base and attach the adapter."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from convpeft.adapter_file import read_adapter
from convpeft.attachment import attach
from convpeft.data import Dataset, ImageBatches, load_data
from convpeft.errors import OptionError
from convpeft.models import Preprocessing, load_model, notes_of, preprocessing_of, source_of
from convpeft.storage import load
from convpeft.training.recipe import Recipe


@dataclass(frozen=True)
class Prepared:
    """What a recipe names, found and built, before anything is trained."""

    recipe: Recipe
    dataset: Dataset
    model: nn.Module
    preprocessing: Preprocessing
    notes: tuple[str, ...]


def prepare_run(recipe: Recipe) -> Prepared:
    """Find the data, build the base and attach the adapter; nothing is trained or written.

    Raises:
        OptionError: If an option does not fit data or model.
        DataError: If the data cannot be read.
        ModelError: If the model cannot be built or adapted.
    """
    dataset = load_recipe_data(recipe)
    torch.manual_seed(recipe.train.seed)  # a base without weights and every adapter start from this seed
    section = recipe.model
    model = load_model(
        section.source, in_channels=section.in_channels, weights=section.weights, pretrained=section.pretrained
    )
    source, preprocessing = source_of(model), preprocessing_of(model)
    if source is None or preprocessing is None:
        raise OptionError(f"model {section.source!r} tells no preprocessing. Load it with convpeft.load_model.")
    model.__dict__["_convpeft_source"] = dataclasses.replace(source, seed=recipe.train.seed)
    adapt(model, recipe, len(dataset.classes))
    return Prepared(recipe, dataset, model, preprocessing, (*notes_of(model), *dataset.notes))


def load_recipe_data(recipe: Recipe) -> Dataset:
    """The recipe's images, split as the run splits them."""
    return load_data(
        recipe.data.source,
        seed=recipe.train.seed,
        val_fraction=recipe.data.val_fraction,
        test_fraction=recipe.data.test_fraction,
        limit=recipe.data.limit,
        fold=recipe.data.fold,
        skip_broken=recipe.data.skip_broken,
    )


def adapt(model: nn.Module, recipe: Recipe, num_classes: int) -> None:
    """Attach the recipe's method, or load the adapter it starts from."""
    if recipe.warm_start is not None:
        file = read_adapter(recipe.warm_start)
        if file.config["num_classes"] not in (None, num_classes):
            raise OptionError(
                f"--from {recipe.warm_start}: has {file.config['num_classes']} classes, the data {num_classes}."
            )
        load(model, recipe.warm_start)
        return
    section = recipe.method
    attach(
        model,
        section.name,
        num_classes=None if recipe.model.keep_head else num_classes,
        include=section.include,
        exclude=section.exclude,
        norm=section.norm,
        head=recipe.model.head,
        rank_policy=section.rank_policy,
        also_train=section.also_train,
        **section.options,
    )


def batches(dataset: Dataset, split: str, preprocessing: Preprocessing, recipe: Recipe) -> ImageBatches:
    """Batches of one split as the recipe wants them; only the training split is shuffled and augmented."""
    training, images = split == "train", dataset.splits()[split]
    size = recipe.train.batch_size
    return ImageBatches(
        images,
        preprocessing,
        batch_size=size if training else max(size, 64),
        shuffle=training,
        augment=recipe.data.augment if training else None,
        seed=recipe.train.seed,
        workers=recipe.train.workers if training else 0,
        # a norm with live statistics cannot take a batch of one image
        drop_last=training and len(images) > size and len(images) % size == 1,
    )


def class_weights(dataset: Dataset, recipe: Recipe) -> Tensor | None:
    """Inverse frequency of each class in the training split, mean one over images; None for equal weights."""
    if recipe.train.class_weights == "none":
        return None
    counts = dataset.train.class_counts(len(dataset.classes))
    present = np.maximum(counts, 1)
    return torch.tensor(counts.sum() / (np.count_nonzero(counts) * present), dtype=torch.float32)
