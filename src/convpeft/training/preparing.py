"""Before a run: find the data, build the base and attach the adapter."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convpeft.adapter_file import read_adapter
from convpeft.attachment import attach
from convpeft.data import Dataset, ImageBatches, find_duplicates, load_data
from convpeft.data.augmentation import check_augmentation
from convpeft.data.batches import CACHE_BYTES
from convpeft.errors import ModelError, OptionError, one_line
from convpeft.evaluation import predict_logits
from convpeft.models import Preprocessing, load_model, notes_of, preprocessing_of, source_of
from convpeft.planning import read_requests
from convpeft.storage import load
from convpeft.training.checkpoints import adapter_tensors, restore_adapter
from convpeft.training.options import check_method, check_settings
from convpeft.training.prefix import Prefix, check_prefix
from convpeft.training.processes import count_processes
from convpeft.training.recipe import Recipe, make_recipe
from convpeft.training.recomputing import blocks_of


@dataclass(frozen=True)
class Prepared:
    """What a recipe names, found and built, before anything is trained."""

    recipe: Recipe
    dataset: Dataset
    model: nn.Module
    preprocessing: Preprocessing
    notes: tuple[str, ...]
    prefix: Prefix | None = None  # what is computed once, where the run trains from features

    @cached_property
    def batches(self) -> dict[str, ImageBatches]:
        """Batches of every split, by its name; together they keep at most 1 GiB of images in memory.

        Reads the pictures that are kept, and names those that cannot be read.
        """
        made: dict[str, ImageBatches] = {}
        left = CACHE_BYTES
        for name in self.dataset.splits():  # the training split first: it gains most
            made[name] = batches(self.dataset, name, self.preprocessing, self.recipe, cache_bytes=left)
            left -= made[name].dataset.cached_bytes
        return made

    @cached_property
    def leaks(self) -> dict[str, int]:
        """Images that two splits have in common, by "first/second"; reads every picture."""
        return dict(Counter(f"{first}/{second}" for first, _, second, _ in find_duplicates(self.dataset)))


def prepare_run(recipe: Recipe) -> Prepared:
    """Find the data, build the base and attach the adapter; nothing is trained or written.

    Raises:
        OptionError: If an option does not fit data or model.
        DataError: If the data cannot be read.
        ModelError: If the model cannot be built or adapted.
    """
    recipe = settle(recipe)
    _check_names(recipe)
    dataset = load_recipe_data(recipe)
    if recipe.warm_start is not None:
        dataset = _in_order_of(dataset, read_adapter(recipe.warm_start).config["classes"], recipe.warm_start)
    torch.manual_seed(recipe.train.seed)  # a base without weights and every adapter start from this seed
    section = recipe.model
    model = load_model(
        section.source, in_channels=section.in_channels, weights=section.weights, pretrained=section.pretrained
    )
    source, preprocessing = source_of(model), preprocessing_of(model)
    if source is None or preprocessing is None:
        raise OptionError(f"model {section.source!r} tells no preprocessing. Load it with convpeft.load_model.")
    if section.image_size is not None:
        preprocessing = dataclasses.replace(preprocessing, size=(section.image_size, section.image_size))
    model.__dict__["_convpeft_source"] = dataclasses.replace(source, seed=recipe.train.seed)
    told = adapt(model, recipe, len(dataset.classes))
    _try_model(model, preprocessing, len(dataset.classes))
    if recipe.train.checkpointing:
        blocks_of(model)  # a network without any is refused before anything is written
    if min(recipe.train.batch_size, len(dataset.train)) == 1:
        _try_single_image(model, preprocessing)
    return Prepared(recipe, dataset, model, preprocessing, (*told, *notes_of(model), *dataset.notes))


def _try_single_image(model: nn.Module, preprocessing: Preprocessing) -> None:
    """Run one blank image in training mode, as a batch of one will, and put everything back.

    Raises:
        OptionError: If a norm with live statistics has one value a channel, of which there is no variance.
    """
    blank = torch.zeros(1, preprocessing.channels, *preprocessing.size)
    before = {key: value.clone() for key, value in adapter_tensors(model).items()}
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.random.fork_rng(), torch.no_grad():
            model.train()(blank)
    except ValueError as error:
        why = one_line(error, 160)
        raise OptionError(
            f"train.batch_size: a batch is one image, and this network cannot learn from one ({why}). "
            'Set train.batch_size to 2 or more, or method.norm="frozen".'
        ) from None
    finally:
        for module, training in modes.items():
            module.training = training
        restore_adapter(model, before)


def _try_model(model: nn.Module, preprocessing: Preprocessing, num_classes: int) -> None:
    """Run one blank image, so that a wrong size or head is found before training."""
    blank = torch.zeros(1, preprocessing.channels, *preprocessing.size)
    nothing = torch.zeros(1, dtype=torch.int64)
    try:
        outputs = predict_logits(model, [(blank, nothing, nothing)]).logits.shape[1]
    except RuntimeError as error:
        size, why = "x".join(map(str, preprocessing.size)), one_line(error, 160)
        raise ModelError(
            f"the model does not run on images of {preprocessing.channels} channels and {size} pixels ({why}). "
            "Set model.image_size or model.in_channels to what it takes."
        ) from None
    if outputs != num_classes:
        raise ModelError(
            f"the model has {outputs} outputs, the data {num_classes} classes. Set model.keep_head=false for a new one."
        )


def load_recipe_data(recipe: Recipe) -> Dataset:
    """The recipe's images, split as the run splits them."""
    return load_data(
        recipe.data.source,
        seed=recipe.train.seed,
        val_fraction=recipe.data.val_fraction,
        test_fraction=recipe.data.test_fraction,
        limit=recipe.data.limit,
        fraction=recipe.data.fraction,
        per_class=recipe.data.per_class,
        val_per_class=recipe.data.val_per_class,
        fold=recipe.data.fold,
        skip_broken=recipe.data.skip_broken,
    )


def settle(recipe: Recipe) -> Recipe:
    """The recipe with the method of the adapter it starts from; one without such a start as it is.

    Raises:
        OptionError: If it asks for another method or option than the adapter has.
        AdapterFileError: If the adapter cannot be read.
    """
    if recipe.warm_start is None:
        return recipe
    config = read_adapter(recipe.warm_start).config
    told: dict[str, Any] = {"name": config["method"], "norm": config["norm"], **config["options"]}
    known = {key: value for key, value in told.items() if value is not None}
    settled = make_recipe(recipe.model_dump(exclude_none=True) | {"method": known}, where=recipe.warm_start)
    given = recipe.method.model_dump(exclude_unset=True, exclude_none=True)
    theirs = settled.method.model_dump()
    for key, value in given.items():
        if theirs.get(key) != value:
            raise OptionError(
                f"method.{key}={value!r}: the adapter to go on from, {recipe.warm_start}, has {theirs.get(key)!r}. "
                "Leave it out."
            )
    return settled


def adapt(model: nn.Module, recipe: Recipe, num_classes: int) -> list[str]:
    """Attach the recipe's method, or load the adapter it starts from; what a reader must know of that."""
    if recipe.warm_start is not None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            load(model, recipe.warm_start, force=recipe.force)
        told = [str(each.message) for each in caught]
        for each in told:
            warnings.warn(each, stacklevel=2)
        return told
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
    return []


def batches(
    dataset: Dataset, split: str, preprocessing: Preprocessing, recipe: Recipe, *, cache_bytes: int = CACHE_BYTES
) -> ImageBatches:
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
        cache_bytes=cache_bytes,
    )


def class_weights(dataset: Dataset, recipe: Recipe) -> Tensor | None:
    """Inverse frequency of each class in the training split, mean one over images; None for equal weights."""
    if recipe.train.class_weights == "none":
        return None
    counts = dataset.train.class_counts(len(dataset.classes))
    present = np.maximum(counts, 1)
    return torch.tensor(counts.sum() / (np.count_nonzero(counts) * present), dtype=torch.float32)


def _check_names(recipe: Recipe) -> None:
    """Check what is only a name or an option before anything is read."""
    check_method(recipe.method)
    read_requests(recipe.method.name, recipe.method.options)
    check_augmentation(recipe.data.augment)
    check_settings(recipe.train, count_processes())
    check_prefix(recipe)


def _in_order_of(dataset: Dataset, classes: list[str] | None, adapter: str) -> Dataset:
    """The data with labels as positions among the adapter's classes, by name."""
    if classes is None or tuple(classes) == dataset.classes:
        return dataset
    unknown = [name for name in dataset.classes if name not in classes]
    if unknown:
        raise OptionError(
            f"warm_start={adapter!r}: knows no class {unknown[0]!r} ({len(unknown)} such). "
            "Start from its base with a new head instead: leave --from out."
        )
    table = np.array([classes.index(name) for name in dataset.classes], dtype=np.int64)
    train, val, test = (dataclasses.replace(each, labels=table[each.labels]) for each in dataset.splits().values())
    return dataclasses.replace(dataset, classes=tuple(classes), train=train, val=val, test=test)
