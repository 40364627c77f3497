"""A saved adapter as a classifier: names, probabilities, and labels by name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import convpeft
from convpeft.data import load_data, prepare, read_image
from convpeft.errors import AdapterFileError, DataError, OptionError
from convpeft.evaluation.inference import Classifier, classify, evaluate_split, find_images, load_classifier
from tiny import CLASSES, draw, write_images, write_splits

FLOAT32_TOLERANCE = 1e-5


def save_adapter(path: Path, *, classes=CLASSES, seed: int = 0, **keys) -> Path:
    """Write an adapter with random weights on small-cnn with weights from a file beside it."""
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    weights = path.with_suffix(".safetensors")
    save_file(convpeft.load_model("small-cnn").state_dict(), weights)
    model = convpeft.load_model("small-cnn", weights=weights)
    convpeft.attach(model, "lora", rank=2, num_classes=len(classes) if classes else 3)
    with torch.no_grad():
        for parameter in convpeft.trainable_parameters(model):
            parameter.normal_(std=0.1)
    convpeft.save(model, path, classes=classes, **keys)
    return path


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapters") / "adapter")


@pytest.fixture(scope="module")
def classifier(adapter) -> Classifier:
    return load_classifier(adapter)


def test_classifier_takes_names_and_preprocessing_from_the_file(classifier):
    assert classifier.classes == CLASSES
    assert classifier.preprocessing.size == (28, 28)
    assert classifier.preprocessing.channels == 1


def test_classifier_is_in_evaluation_mode(classifier):
    assert not any(module.training for module in classifier.model.modules())


def test_adapter_without_class_names_is_refused(tmp_path):
    path = save_adapter(tmp_path / "nameless", classes=None)
    with pytest.raises(AdapterFileError, match=r"nameless: tells no classes\. Save with convpeft\.save\("):
        load_classifier(path)


def test_adapter_without_preprocessing_is_refused(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model.append(torch.nn.Linear(8, 3))
    convpeft.save(convpeft.attach(model, "lora", rank=1, num_classes=3), tmp_path / "bare", classes=CLASSES)
    with pytest.raises(AdapterFileError, match=r"bare: tells no preprocessing\. Save with convpeft\.save\("):
        load_classifier(tmp_path / "bare")


def test_answers_are_the_softmax_of_the_models_logits(classifier, tmp_path):
    images = write_images(tmp_path / "images", count=2)
    paths = find_images([images])
    answers = classify(classifier, paths, top=3)
    for path, answer in zip(paths, answers, strict=True):
        pixels = prepare(read_image(path), classifier.preprocessing).double() / 255
        with torch.no_grad():
            logits = classifier.model(((pixels - 0.1307) / 0.3081).float()[None])[0].double()
        expected = dict(zip(CLASSES, logits.softmax(0).tolist(), strict=True))
        assert answer.image == str(path)
        assert dict(zip(answer.classes, answer.probabilities, strict=True)) == pytest.approx(
            expected, abs=FLOAT32_TOLERANCE
        )
        assert list(answer.probabilities) == sorted(answer.probabilities, reverse=True)


def test_answers_do_not_depend_on_the_batch(classifier, tmp_path):
    paths = find_images([write_images(tmp_path / "images", count=3)])
    for one, other in zip(classify(classifier, paths), classify(classifier, paths, batch_size=2), strict=True):
        assert one.classes == other.classes
        assert one.probabilities == pytest.approx(other.probabilities, abs=FLOAT32_TOLERANCE)


@pytest.mark.parametrize(("top", "expected"), [(1, 1), (2, 2), (99, 3)])
def test_top_is_at_most_the_number_of_classes(classifier, tmp_path, top, expected):
    (path, *_) = find_images([write_images(tmp_path / "images", count=1)])
    assert len(classify(classifier, [path], top=top)[0].classes) == expected


def test_no_images_give_no_answers(classifier):
    assert classify(classifier, []) == []


def test_image_that_cannot_be_read_is_named(classifier, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"bad\.png"):
        classify(classifier, [tmp_path / "bad.png"])


def test_files_are_taken_as_given_and_folders_are_searched(tmp_path):
    images = write_images(tmp_path / "images", names=("low",), count=2)
    single = tmp_path / "picture.without.suffix"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(single, format="PNG")
    (images / "low" / "note.txt").write_text("no picture")
    assert find_images([single, images]) == [single, images / "low" / "0.png", images / "low" / "1.png"]


def test_hidden_images_below_a_folder_are_passed_over(tmp_path):
    images = write_images(tmp_path / ".hidden above", names=("low",), count=1)
    (images / "low" / "._0.png").write_bytes(b"")
    (images / ".thumbnails").mkdir()
    (images / ".thumbnails" / "0.png").write_bytes(b"")
    assert find_images([images]) == [images / "low" / "0.png"]


def test_every_format_that_can_be_read_is_found(tmp_path):
    for name in ("a.png", "b.JPG", "c.jfif", "d.webp", "e.pbm", "f.Tiff"):
        (tmp_path / name).write_bytes(b"")
    assert len(find_images([tmp_path])) == 6


def test_folder_without_images_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no image\. Looked for "):
        find_images([tmp_path])


def test_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png: there is no such file or folder"):
        find_images([tmp_path / "gone.png"])


def by_hand(classifier: Classifier, root: Path) -> dict[str, tuple[str, str]]:
    """True and predicted class name of every test image, by its id, from its folder and `classify`."""
    paths = find_images([root / "test"])
    answers = classify(classifier, paths, top=1)
    return {
        str(path.relative_to(root)): (path.parent.name, answer.classes[0])
        for path, answer in zip(paths, answers, strict=True)
    }


@pytest.mark.promise("C14")
@pytest.mark.parametrize("names", [CLASSES, ("low", "middle"), ("high", "middle")])
def test_labels_follow_names_and_not_positions(classifier, tmp_path, names):
    data = load_data(f"folder:{write_splits(tmp_path / 'data', names=names)}")
    predictions, classes = evaluate_split(classifier, data, "test")
    assert classes == CLASSES
    told = {
        data.test.ids[i]: (classes[label], classes[predicted])
        for i, label, predicted in zip(predictions.index, predictions.labels, predictions.predicted, strict=True)
    }
    assert told == by_hand(classifier, tmp_path / "data")


@pytest.mark.promise("C14")
def test_labels_follow_names_in_another_order(tmp_path):
    """The same weights under permuted names give the permuted labels."""
    data = load_data(f"folder:{write_splits(tmp_path / 'data')}")
    order = ("middle", "high", "low")
    permuted = load_classifier(save_adapter(tmp_path / "permuted", classes=order))
    predictions, classes = evaluate_split(permuted, data, "test")
    assert classes == order
    assert [classes[label] for label in predictions.labels] == [data.classes[label] for label in data.test.labels]


@pytest.mark.promise("C14")
def test_class_without_images_may_be_unknown(classifier, tmp_path):
    root = write_splits(tmp_path / "data")
    (root / "train" / "empty").mkdir()
    predictions, _ = evaluate_split(classifier, load_data(f"folder:{root}"), "test")
    assert len(predictions.labels) == 12


@pytest.mark.promise("C14")
def test_class_with_images_has_to_be_known(classifier, tmp_path):
    root = write_splits(tmp_path / "data")
    for split in ("train", "test"):
        (root / split / "other").mkdir()
        Image.fromarray(draw("low", np.random.default_rng(len(split)))).save(root / split / "other" / "x.png")
    with pytest.raises(DataError, match=r"class 'other' is unknown to the model \(1 such\)\. It knows high, low"):
        evaluate_split(classifier, load_data(f"folder:{root}"), "test")


def test_split_that_does_not_exist_is_refused(classifier, tmp_path):
    data = load_data(f"folder:{write_splits(tmp_path / 'data')}")
    with pytest.raises(OptionError, match=r"split='tset' does not exist\. Did you mean 'test'\?"):
        evaluate_split(classifier, data, "tset")


def test_base_answers_with_the_adapter_off(classifier, tmp_path):
    data = load_data(f"folder:{write_splits(tmp_path / 'data')}")
    predictions, classes = evaluate_split(classifier, data, "test", who="base")
    base = convpeft.detach(load_classifier_of(tmp_path).model)
    expected, _ = evaluate_split(Classifier(base, classifier.preprocessing, OUTPUTS), digits(data), "test")
    assert classes == (*CLASSES, *OUTPUTS[3:])
    assert np.array_equal(predictions.logits, expected.logits)


OUTPUTS = tuple(f"output {number}" for number in range(10))


def load_classifier_of(folder: Path) -> Classifier:
    return load_classifier(save_adapter(folder / "adapter"))


def digits(data):
    import dataclasses

    return dataclasses.replace(data, classes=OUTPUTS)


def test_old_head_sits_on_the_adapted_features(classifier, tmp_path):
    data = load_data(f"folder:{write_splits(tmp_path / 'data')}")
    predictions, _ = evaluate_split(classifier, data, "test", who="old-head")
    off, _ = evaluate_split(classifier, data, "test", who="base")
    on, _ = evaluate_split(classifier, data, "test")
    assert predictions.logits.shape == (12, 10)
    assert not np.array_equal(predictions.logits, off.logits)
    features: list[torch.Tensor] = []
    head = classifier.model.get_submodule("classifier")
    handle = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    again, _ = evaluate_split(classifier, data, "test")
    handle.remove()
    assert np.array_equal(again.logits, on.logits)  # the adapter is back after the other two
    old = convpeft.detach(load_classifier_of(tmp_path).model).get_submodule("classifier")
    with torch.no_grad():
        expected = old(torch.cat(features)).numpy()
    assert np.allclose(predictions.logits, expected, atol=FLOAT32_TOLERANCE)


def test_base_with_too_few_outputs_is_refused(classifier, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"classes": np.array([f"class {number}" for number in range(11)])}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 255, (11, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(11)
    np.savez(tmp_path / "eleven.npz", **arrays)
    with pytest.raises(DataError, match=r"the base has 10 outputs, npz:.* has 11 classes"):
        evaluate_split(classifier, load_data(f"npz:{tmp_path / 'eleven.npz'}"), "test", who="base")
