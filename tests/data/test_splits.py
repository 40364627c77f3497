import numpy as np
import pytest

from convpeft.data.datasets import Parts, Split, array_split
from convpeft.data.splits import as_found, choose, complete, hold_out
from convpeft.errors import DataError

CLASSES = ("a", "b", "c")


def split_of(labels: list[int], name: str = "train", groups: tuple[str, ...] | None = None) -> Split:
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1) * np.ones((1, 2, 2), np.uint8)
    split = array_split(name, images, labels)
    return Split(split.images, split.labels, split.ids, groups)


def completed(parts: dict[str, Split], seed: int = 0, limit: int | None = None, classes: tuple[str, ...] = CLASSES):
    return complete("x:y", Parts(classes, parts), seed=seed, val_fraction=0.1, test_fraction=0.2, limit=limit)


def test_missing_splits_are_cut_out_of_train_without_overlap():
    dataset = completed({"train": split_of([0] * 50 + [1] * 30 + [2] * 20)})
    ids = [set(split.ids) for split in dataset.splits().values()]
    assert sum(len(part) for part in ids) == len(set.union(*ids)) == 100


def test_made_splits_hold_the_same_share_of_every_class():
    dataset = completed({"train": split_of([0] * 50 + [1] * 30 + [2] * 20)})
    assert dataset.test.class_counts(3).tolist() == [10, 6, 4]
    assert dataset.val.class_counts(3).tolist() == [4, 2, 2]


@pytest.mark.promise("C14")
def test_images_stay_with_their_labels():
    labels = [0] * 50 + [1] * 30 + [2] * 20
    for split in completed({"train": split_of(labels)}).splits().values():
        assert [labels[split.images[i][0, 0, 0]] for i in range(len(split))] == split.labels.tolist()


def test_given_test_split_is_not_touched():
    given = split_of([0, 1, 2], "test")
    assert completed({"train": split_of([0, 1, 2] * 10), "test": given}).test is given


def test_splits_depend_on_the_seed_alone():
    one, same, other = (completed({"train": split_of([0, 1, 2] * 20)}, seed=seed).test.ids for seed in (1, 1, 2))
    assert one == same != other


def test_notes_say_how_splits_were_made():
    notes = completed({"train": split_of([0, 1, 2] * 10)}, seed=7).notes
    assert notes == (
        "test: none was given, so 6 of 30 training images, stratified by class, seed 7",
        "val: none was given, so 3 of 24 training images, stratified by class, seed 7",
    )


def test_groups_are_never_torn_apart():
    rng = np.random.default_rng(0)
    groups = tuple(str(g) for g in rng.integers(0, 40, 300))
    dataset = completed({"train": split_of(rng.integers(0, 3, 300).tolist(), groups=groups)})
    found = [set(split.groups or ()) for split in dataset.splits().values()]
    assert len(set.union(*found)) == sum(len(part) for part in found) == len(set(groups))


def test_groups_are_held_out_near_the_share_of_every_class():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    held = hold_out(labels, 0.2, rng=rng, groups=tuple(str(g) for g in rng.integers(0, 60, 300)))
    shares = np.bincount(labels[held], minlength=3) / np.bincount(labels)
    assert np.abs(shares - 0.2).max() < 0.05


def test_groups_larger_than_the_share_give_one_group():
    labels = np.array([0, 1] * 50)
    held = hold_out(labels, 0.05, rng=np.random.default_rng(0), groups=tuple(str(i // 25) for i in range(100)))
    assert held.sum() == 25


def test_class_of_one_group_stays_in_train():
    labels = np.array([0] * 20 + [1] * 5)
    groups = tuple(str(i // 2) for i in range(20)) + ("only",) * 5
    held = hold_out(labels, 0.6, rng=np.random.default_rng(0), groups=groups)
    assert held[:20].any()
    assert not held[20:].any()


def test_class_of_one_image_stays_in_train():
    held = hold_out(np.array([0, 0, 1]), 0.5, rng=np.random.default_rng(0))
    assert held.tolist().count(True) == 1
    assert not held[2]


def test_limit_is_stratified_and_nested():
    labels = np.array([0] * 600 + [1] * 300 + [2] * 100)
    small, large = (set(choose(labels, limit, seed=3).tolist()) for limit in (50, 200))
    assert small < large
    assert np.abs(np.bincount(labels[sorted(large)]) - [120, 60, 20]).max() <= 1


def test_limit_keeps_every_class_as_long_as_it_can():
    labels = np.array([0] * 1000 + [1, 2])
    assert set(labels[choose(labels, 3, seed=0)].tolist()) == {0, 1, 2}


def test_limit_leaves_val_and_test_alone_and_is_noted():
    parts = {"train": split_of([0, 1, 2] * 20)}
    limited, whole = completed(parts, limit=9), completed(parts)
    assert (limited.val.ids, limited.test.ids) == (whole.val.ids, whole.test.ids)
    assert len(limited.train) == 9
    assert limited.notes[-1] == f"train: 9 of {len(whole.train)} images, stratified by class, seed 0"


def test_limit_below_the_classes_is_noted():
    assert "leaves 1 of 3 classes" in completed({"train": split_of([0, 1, 2] * 20)}, limit=2).notes[-1]


@pytest.mark.promise("B04")
def test_class_that_train_lacks_is_an_error():
    parts = {"train": split_of([0, 1] * 10), "test": split_of([0, 2], "test")}
    with pytest.raises(DataError, match=r"the test split has class 'c', of which train has no image. Add"):
        completed(parts)


@pytest.mark.promise("C14")
def test_split_that_lacks_a_class_keeps_the_labels():
    dataset = completed({"train": split_of([0, 1, 2] * 10), "test": split_of([2, 2], "test")})
    assert dataset.test.labels.tolist() == [2, 2]
    assert dataset.classes == CLASSES


@pytest.mark.promise("B04")
def test_class_without_any_image_is_kept_and_noted():
    dataset = completed({"train": split_of([0, 2] * 10)})
    assert dataset.classes == CLASSES
    assert "class 'b': no images in any split" in dataset.notes


@pytest.mark.promise("B04")
def test_one_class_is_an_error():
    with pytest.raises(DataError, match=r"has one class \(a\), expected two or more"):
        completed({"train": split_of([0] * 10)}, classes=("a",))


@pytest.mark.promise("B04")
@pytest.mark.parametrize("labels", [[0], [0, 1]])
def test_too_few_images_for_a_split_is_an_error(labels):
    with pytest.raises(DataError, match=f"too few images to make a test split out of {len(labels)} training images"):
        completed({"train": split_of(labels)})


@pytest.mark.promise("B04")
def test_no_training_image_is_an_error():
    with pytest.raises(DataError, match="has no training images"):
        completed({"train": split_of([]), "test": split_of([0, 1], "test")})


def test_groups_shared_by_given_splits_are_noted():
    parts = {"train": split_of([0, 1, 2] * 20, groups=tuple(str(i // 3) for i in range(60)))}
    parts["test"] = split_of([0], "test", groups=(parts["train"].groups[0],))
    parts["val"] = split_of([0], "val", groups=("another",))
    assert "test: as given, shares 1 groups with train, so its results are optimistic" in completed(parts).notes


@pytest.mark.parametrize("parts", [{}, {"train": split_of([])}, {"val": split_of([], "val"), "test": split_of([])}])
def test_source_without_any_image_is_an_error(parts):
    with pytest.raises(DataError, match=r"^data 'x:y': has no images\. Put them below CLASS/ or test/CLASS/\.$"):
        as_found("x:y", Parts(CLASSES, parts))


def part_of(split: Split, **part) -> Split:
    other = split_of([0, 1, 2], "val")
    parts = Parts(CLASSES, {"train": split, "val": other, "test": other})
    made = complete("x:y", parts, **({"seed": 0, "limit": None} | part), val_fraction=0.1, test_fraction=0.2)
    assert (made.val.ids, made.test.ids) == (other.ids, other.ids)
    return made.train


def test_fraction_is_stratified_and_follows_the_seed():
    train = split_of([0] * 50 + [1] * 30 + [2] * 20)
    assert part_of(train, fraction=0.1).class_counts(3).tolist() == [5, 3, 2]
    assert part_of(train, fraction=0.1).ids == part_of(train, fraction=0.1).ids
    assert part_of(train, fraction=0.1).ids != part_of(train, fraction=0.1, seed=1).ids
    assert part_of(train, fraction=1.0).ids == train.ids


@pytest.mark.parametrize("seed", range(5))
def test_fraction_keeps_groups_whole(seed: int):
    groups = tuple(f"patient {number // 4}" for number in range(120))
    train = split_of([0, 1, 2, 0] * 30, groups=groups)
    taken = part_of(train, fraction=0.3, seed=seed)
    assert len(taken) == pytest.approx(36, abs=4)
    assert all(taken.groups.count(group) == 4 for group in set(taken.groups))


def test_per_class_takes_so_many_of_each_class_nested():
    train = split_of([0] * 50 + [1] * 30 + [2] * 3)
    five, two = part_of(train, per_class=5), part_of(train, per_class=2)
    assert five.class_counts(3).tolist() == [5, 5, 3]
    assert two.class_counts(3).tolist() == [2, 2, 2]
    assert set(two.ids) < set(five.ids)
    assert part_of(train, per_class=5, seed=1).ids != five.ids


def test_val_per_class_takes_so_many_of_each_class_by_the_seed_and_leaves_the_rest():
    parts = {
        "train": split_of([0] * 20 + [1] * 20 + [2] * 20),
        "val": split_of([0] * 30 + [1] * 20 + [2] * 2, "val"),
        "test": split_of([0, 1, 2] * 5, "test"),
    }

    def made(**wanted):
        shares = {"val_fraction": 0.1, "test_fraction": 0.2, "limit": None}
        return complete("x:y", Parts(CLASSES, parts), **shares, **({"seed": 0} | wanted))

    some, same, other = (made(val_per_class=4, seed=seed) for seed in (0, 0, 1))
    assert some.val.class_counts(3).tolist() == [4, 4, 2]
    assert some.val.ids == same.val.ids != other.val.ids
    assert set(some.val.ids) < set(parts["val"].ids)
    assert (some.train.ids, some.test.ids) == (parts["train"].ids, parts["test"].ids)
    assert "val: 10 of 52 images, 4 a class, seed 0" in some.notes
    assert made().val.ids == parts["val"].ids


def test_val_per_class_draws_other_numbers_than_per_class():
    labels = [0] * 40 + [1] * 40 + [2] * 40
    parts = {"train": split_of(labels), "val": split_of(labels, "val"), "test": split_of([0, 1, 2], "test")}
    shares = {"val_fraction": 0.1, "test_fraction": 0.2, "limit": None}
    made = complete("x:y", Parts(CLASSES, parts), seed=0, per_class=5, val_per_class=5, **shares)
    drawn = [[each.images[i][0, 0, 0] for i in range(len(each))] for each in (made.train, made.val)]
    assert drawn[0] != drawn[1]
