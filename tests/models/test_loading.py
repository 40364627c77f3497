"""load_model: every kind of source, its head, its channels, its preprocessing, and its errors."""

import copy
import sys
import time

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from convpeft.errors import ModelError, OptionError
from convpeft.models import (
    ModelSource,
    Preprocessing,
    load_model,
    model_sources,
    notes_of,
    preprocessing_of,
    rebuild,
    source_of,
)

NETS = """
import torch
from torch import nn

def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))

def asked(num_classes=6, *, in_channels=2):
    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

def failing():
    raise ZeroDivisionError("by\\nzero")

def dense(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))

def nothing():
    return 3

number = 3
"""

# source, classes of its own, channels of its own
SOURCES = [
    ("small-cnn", 10, 1),
    ("cifar-resnet/20", 10, 3),
    ("mobilenetv1/0.25", 1000, 3),
    ("timm/test_resnet.r160_in1k", 1000, 3),
    ("torchvision/squeezenet1_1", 1000, 3),
    ("convpeft_test_nets:plain", 6, 3),
    ("convpeft_test_nets:asked", 6, 2),
]
FILE_SOURCES = [source for source, _, _ in SOURCES]


@pytest.fixture(autouse=True)
def nets(monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nets")
    (folder / "convpeft_test_nets.py").write_text(NETS)
    (folder / "convpeft_broken.py").write_text("raise ValueError('not today')")
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop("convpeft_test_nets", None)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    import huggingface_hub

    from convpeft.models import downloads

    monkeypatch.setattr(downloads, "reachable", lambda url: False)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))


def logits(model, size=None):
    preprocessing = preprocessing_of(model)
    return model.eval()(torch.rand(2, preprocessing.channels, *(size or preprocessing.size)))


def random_start(source, **options):
    torch.manual_seed(0)
    return load_model(source, pretrained=False, **options)


def refused(source, **options):
    with pytest.raises(ModelError) as caught:
        load_model(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def saved(model, path):
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


def assert_same_weights(model, other, *, except_for=()):
    own, expected = model.state_dict(), other.state_dict()
    assert own.keys() == expected.keys()
    different = {name for name in own if not torch.equal(own[name], expected[name])}
    assert different == set(except_for)


# Every kind of source


@pytest.mark.parametrize(("source", "classes", "channels"), SOURCES)
def test_a_source_has_its_own_head_and_channels(source, classes, channels):
    model = random_start(source)
    assert logits(model).shape == (2, classes)
    assert source_of(model) == ModelSource(
        source=source, num_classes=None, in_channels=channels, weights=None, pretrained=False
    )


@pytest.mark.parametrize("source", [source for source in FILE_SOURCES if source != "convpeft_test_nets:plain"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_classes_and_channels_are_as_asked(source, channels):
    model = random_start(source, num_classes=7, in_channels=channels)
    assert preprocessing_of(model).channels == channels
    assert source_of(model).in_channels == channels
    assert logits(model).shape == (2, 7)


@pytest.mark.parametrize("source", FILE_SOURCES)
def test_the_same_seed_gives_the_same_random_weights(source):
    assert_same_weights(random_start(source), random_start(source))


def test_an_inception_answers_with_logits_alone_and_takes_pixels_in_minus_one_to_one():
    model = random_start("torchvision/googlenet", num_classes=3).train()
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 3)
    assert preprocessing_of(model).mean == preprocessing_of(model).std == (0.5, 0.5, 0.5)


def test_source_preprocessing_and_notes_survive_a_copy():
    model = load_model("small-cnn")
    clone = copy.deepcopy(model)
    assert source_of(clone) == source_of(model) is not None
    assert preprocessing_of(clone) == preprocessing_of(model) is not None
    assert notes_of(clone) == notes_of(model) != ()


def test_a_model_from_elsewhere_has_neither_source_nor_preprocessing():
    model = nn.Linear(2, 2)
    assert (source_of(model), preprocessing_of(model), notes_of(model)) == (None, None, ())


@pytest.mark.parametrize("source", ["small-cnn", "cifar-resnet/20", "mobilenetv1/0.25"])
def test_a_random_start_is_noted_where_pretrained_weights_were_asked_for(source):
    assert notes_of(load_model(source)) == (
        f"{source} has no weights to fetch, so it starts from random ones; pass weights=FILE to load some.",
    )
    assert notes_of(load_model(source, pretrained=False)) == ()


def test_every_form_of_source_is_described():
    forms = [form.partition("/")[0] for form, _ in model_sources()]
    assert forms == [
        "timm",
        "torchvision",
        "cifar-resnet",
        "mobilenetv1",
        "small-cnn",
        "compressed:FILE",
        "PACKAGE.MODULE:FUNCTION",
    ]
    assert all(description for _, description in model_sources())


# Preprocessing


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("small-cnn", Preprocessing((28, 28), "crop", 1.0, (0.1307,), (0.3081,), 1)),
        ("cifar-resnet/20", Preprocessing((32, 32), "crop", 1.0)),
        ("mobilenetv1/0.25", Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3)),
        ("convpeft_test_nets:plain", Preprocessing()),
        (
            "timm/test_resnet.r160_in1k",
            Preprocessing((160, 160), "crop", 0.95, (0.5,) * 3, (0.5,) * 3),
        ),
        ("timm/resnet18.a1_in1k", Preprocessing(crop=0.95, interpolation="bicubic")),
        ("torchvision/squeezenet1_1", Preprocessing(crop=224 / 256)),
        ("torchvision/mobilenet_v2:IMAGENET1K_V2", Preprocessing(crop=224 / 232)),
        ("torchvision/mobilenet_v2:IMAGENET1K_V1", Preprocessing(crop=224 / 256)),
    ],
)
def test_preprocessing_is_the_models_own(source, expected):
    assert preprocessing_of(load_model(source, pretrained=False)) == expected


# Weights files


@pytest.mark.parametrize("source", FILE_SOURCES)
def test_a_weights_file_is_loaded_and_nothing_is_fetched(source, tmp_path, no_network):
    original = random_start(source)
    file = saved(original, tmp_path / "w.safetensors")
    torch.manual_seed(1)
    model = load_model(source, weights=file)
    assert_same_weights(model, original)
    assert source_of(model).weights == str(file)
    assert notes_of(model) == ()


@pytest.mark.parametrize("source", [source for source in FILE_SOURCES if source != "convpeft_test_nets:plain"])
def test_the_number_of_classes_is_read_from_the_file(source, tmp_path):
    original = random_start(source, num_classes=13)
    model = load_model(source, weights=saved(original, tmp_path / "w.safetensors"))
    assert_same_weights(model, original)
    assert logits(model).shape == (2, 13)


@pytest.mark.parametrize("source", FILE_SOURCES)
@pytest.mark.parametrize("channels", [1, 4])
def test_a_file_of_another_number_of_channels_is_adapted(source, channels, tmp_path):
    original = random_start(source, in_channels=channels)
    file = saved(original, tmp_path / "w.safetensors")
    same = load_model(source, in_channels=channels, weights=file)
    assert_same_weights(same, original)
    adapted = load_model(source, in_channels=2, weights=file)
    stem = next(name for name, tensor in original.state_dict().items() if tensor.ndim == 4)
    assert_same_weights_but_stem(adapted, original, stem)
    old, new = original.state_dict()[stem], adapted.state_dict()[stem]
    torch.testing.assert_close(new[:, 0], old[:, 0] * channels / 2)


def assert_same_weights_but_stem(model, original, stem):
    own, expected = model.state_dict(), original.state_dict()
    assert {name for name in own if own[name].shape != expected[name].shape} == {stem}
    assert all(torch.equal(own[name], expected[name]) for name in own if name != stem)


def test_a_head_of_another_size_in_the_file_is_an_error_that_names_both(tmp_path):
    file = saved(random_start("cifar-resnet/20", num_classes=200), tmp_path / "w.safetensors")
    message = refused("cifar-resnet/20", num_classes=10, weights=file)
    assert message == (
        f"weights file {str(file)!r} for cifar-resnet/20: its head 'linear' has 200 classes, expected 10; "
        "pass num_classes=200 (attach(..., num_classes=10) then adds a fresh head)."
    )


def test_weights_of_another_depth_are_refused(tmp_path):
    file = saved(random_start("cifar-resnet/32"), tmp_path / "w.safetensors")
    message = refused("cifar-resnet/20", weights=file)
    assert "for cifar-resnet/20: does not fit the model: 72 unexpected ('layer" in message  # 6 blocks of 12


def test_weights_of_a_timm_model_under_other_names_are_refused(tmp_path):
    file = saved(random_start("cifar-resnet/20"), tmp_path / "w.safetensors")
    assert "for timm/test_resnet: does not fit the model: " in refused("timm/test_resnet", weights=file)


def test_a_missing_weights_file_is_named(tmp_path):
    assert "no such file" in refused("small-cnn", weights=tmp_path / "none.pth")


def test_an_old_timm_file_is_renamed_by_timm(tmp_path):
    original = random_start("timm/convnext_atto")
    old = {
        name.replace("head.norm.", "norm.").replace("head.fc.", "head."): tensor
        for name, tensor in original.state_dict().items()
    }
    assert old.keys() != original.state_dict().keys()
    save_file(old, tmp_path / "w.safetensors")
    assert_same_weights(load_model("timm/convnext_atto", weights=tmp_path / "w.safetensors"), original)


def test_an_old_densenet_file_and_auxiliary_heads_are_translated():
    from convpeft.models.torchvision_models import _translated

    state = {
        "features.denseblock1.denselayer2.norm.1.weight": 0,
        "features.denseblock1.denselayer2.conv2.weight": 1,
        "aux1.fc1.weight": 2,
        "AuxLogits.fc.bias": 3,
        "fc.bias": 4,
    }
    assert _translated(state) == {
        "features.denseblock1.denselayer2.norm1.weight": 0,
        "features.denseblock1.denselayer2.conv2.weight": 1,
        "fc.bias": 4,
    }


# Weights that are fetched


@pytest.fixture(params=["timm/test_resnet.r160_in1k", "torchvision/squeezenet1_1"])
def published(request, monkeypatch, tmp_path):
    """A source whose weights can be fetched, and the model that was published."""
    from convpeft.models import timm_models, torchvision_models

    original = random_start(request.param)
    file = saved(original, tmp_path / "model.safetensors")
    monkeypatch.setattr(timm_models, "fetch_from_hub", lambda repository, names, *, source: file)
    monkeypatch.setattr(torchvision_models, "fetch_from_url", lambda url, *, source: file)
    torch.manual_seed(1)
    return request.param, original


def test_pretrained_weights_are_loaded(published):
    source, original = published
    model = load_model(source)
    assert_same_weights(model, original)
    assert notes_of(model) == ()


def test_another_number_of_classes_gives_a_fresh_head_on_the_pretrained_body(published):
    source, original = published
    model = load_model(source, num_classes=5)
    own, expected = model.state_dict(), original.state_dict()
    different = {name for name in own if own[name].shape != expected[name].shape}
    head = "fc" if source.startswith("timm") else "classifier.1"
    assert different == {f"{head}.weight", f"{head}.bias"}
    assert all(torch.equal(own[name], expected[name]) for name in own if name not in different)


def test_pretrained_stems_are_summed_for_one_channel(published):
    source, original = published
    model = load_model(source, in_channels=1)
    stem = next(name for name, tensor in original.state_dict().items() if tensor.ndim == 4)
    assert_same_weights_but_stem(model, original, stem)
    torch.testing.assert_close(model.state_dict()[stem], original.state_dict()[stem].sum(1, keepdim=True))


@pytest.mark.parametrize("options", [{}, {"num_classes": 5}, {"in_channels": 1}])
def test_fetched_weights_that_lack_a_tensor_are_refused(published, options, monkeypatch):
    from convpeft.models import timm_models, torchvision_models

    source, original = published
    state = {name: tensor for name, tensor in original.state_dict().items() if tensor.ndim == 4}
    del state[next(iter(state))]
    for module in (timm_models, torchvision_models):
        monkeypatch.setattr(module, "read_weights", lambda path: state)
    message = refused(source, **options)
    assert message.startswith(source)
    assert "issing" in message


def test_the_fetched_weights_are_not_kept_a_second_time(published):
    source, _ = published
    model = load_model(source)
    assert "state_dict" not in getattr(model, "pretrained_cfg", {})


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("timm/resnet18.a1_in1k", "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors"),
        ("torchvision/resnet50:IMAGENET1K_V2", "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"),
        ("torchvision/resnet50:IMAGENET1K_V1", "https://download.pytorch.org/models/resnet50-0676ba61.pth"),
    ],
)
def test_without_a_network_it_fails_in_seconds_and_names_the_file(source, file, no_network, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://huggingface.co")
    start = time.monotonic()
    message = refused(source)
    assert time.monotonic() - start < 10
    assert message.startswith(f"{source}: its pretrained weights are not on this machine")
    assert f"download {file} and p" in message
    assert "weights=FILE" in message


def test_a_timm_model_without_published_weights_starts_random_and_says_so():
    model = load_model("timm/skresnet50d")
    assert notes_of(model) == (
        "timm/skresnet50d: timm has no weights for it, so it starts from random ones; pass weights=FILE.",
    )


def test_what_timm_cannot_build_is_a_one_line_error(monkeypatch):
    from convpeft.models import timm_models

    def fail(name, **settings):
        raise ValueError("no such\nchannels")

    monkeypatch.setattr(timm_models.timm, "create_model", fail)
    message = refused("timm/test_resnet", pretrained=False, in_channels=2)
    assert message == "timm/test_resnet: timm cannot build it (no such channels); leave out in_chans=2."


# The user's own function


def test_a_function_without_the_argument_cannot_be_given_classes():
    message = refused("convpeft_test_nets:plain", num_classes=3)
    assert message == "convpeft_test_nets:plain: takes no num_classes (asked for 3); add the argument or leave it out."


def test_the_stem_of_a_function_without_the_argument_is_adapted():
    assert logits(random_start("convpeft_test_nets:plain", in_channels=1)).shape == (2, 6)


def test_a_function_whose_network_has_no_stem_keeps_its_channels():
    model = random_start("convpeft_test_nets:dense", num_classes=4)
    assert source_of(model).in_channels == 3
    assert "no plain convolution" in refused("convpeft_test_nets:dense", num_classes=4, in_channels=1)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("convpeft_no_such:build", "importing convpeft_no_such failed (ModuleNotFoundError: No module named"),
        ("convpeft_broken:build", "importing convpeft_broken failed (ValueError: not today); install it or put"),
        ("convpeft_test_nets:missing", "convpeft_test_nets has no function 'missing'; check the name"),
        ("convpeft_test_nets:number", "convpeft_test_nets has no function 'number'; check the name"),
        ("convpeft_test_nets:failing", "calling it failed (ZeroDivisionError: by); make it return an nn.Module"),
        ("convpeft_test_nets:nothing", "expected it to return an nn.Module, got int."),
    ],
)
def test_a_function_that_cannot_be_used_is_a_one_line_error(source, expected):
    message = refused(source)
    assert message.startswith(f"{source}: ")
    assert expected in message


# Names that are wrong


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("smal-cnn", "model 'smal-cnn': no such kind of source. Did you mean 'small-cnn'?"),
        ("resnet18", "model 'resnet18': no such kind of source. Known: PACKAGE.MODULE:FUNCTION, cifar-resnet/DEPTH"),
        ("timm", "no such kind of source"),
        ("small-cnn/3", "no such kind of source"),
        ("timm/resnt18", "timm/resnt18: timm knows no such model. Did you mean resnet18"),
        ("timm/zzzzqqq", "timm knows no such model. See timm.list_models()."),
        ("timm/resnet18.a9_in1k", "timm/resnet18.a9_in1k: resnet18 has no such weights. Did you mean resnet18.a"),
        ("torchvision/resnt18", "torchvision/resnt18: torchvision knows no such classifier. Did you mean resnet18"),
        ("torchvision/zzzzqqq", "See torchvision.models.list_models()."),
        ("torchvision/resnet50:IMAGENET_V2", "has no such weights. Did you mean 'IMAGENET1K_V2'? Known: DEFAULT, "),
        ("torchvision/resnet50:", "torchvision/resnet50:: resnet50 has no such weights."),
        ("torchvision/fcn_resnet50", "torchvision knows no such classifier"),
        ("cifar-resnet/21", "model 'cifar-resnet/21': expected one of the depths 20, 32, 44, 56, got '21'."),
        ("cifar-resnet/", "expected one of the depths"),
        (
            "mobilenetv1/3",
            "model 'mobilenetv1/3': expected a width from 0.1 to 2.0, for example 0.25, 0.5, 0.75 or 1.0",
        ),
        ("mobilenetv1/nan", "expected a width"),
        ("mobilenetv1/1e0", "expected a width"),
    ],
)
def test_a_wrong_name_is_answered_with_help(source, expected):
    assert expected in refused(source)


@pytest.mark.parametrize(
    "source",
    [
        "timm/hf-hub:someone/model",
        "timm/hf_hub:someone/model",
        "timm/local-dir:/etc",
        "timm/../../etc/passwd",
        "timm/resnet18/../x",
        "timm/resnet18.a1_in1k@main",
        "timm/",
        "torchvision/../x",
        "torchvision/__class__",
        "torchvision/resnet18:__init__",
        "cifar-resnet/٢٠",  # Arabic digits, which int() would read
        "mobilenetv1/0.75;rm",
        "../../weights",
        "http://example.invalid/model",
        "os.system('true')",
        "os:system:x",
        ":f",
        "os:",
        "a..b:f",
        "a/b:f",
    ],
)
def test_a_hostile_source_is_refused_before_anything_is_imported_or_fetched(source, monkeypatch):
    import huggingface_hub

    from convpeft.models import downloads, imported

    monkeypatch.setattr(downloads, "reachable", lambda url: pytest.fail("fetched"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *given, **named: pytest.fail("fetched"))
    monkeypatch.setattr(imported.importlib, "import_module", lambda name: pytest.fail("imported"))
    refused(source)


@pytest.mark.parametrize("source", ["", 3, None, "x" * 201, "small-cnn\n", "small\x1b[31m"])
def test_what_is_no_source_string_is_an_option_error(source):
    with pytest.raises(OptionError, match=r"^model: expected a source string such as 'timm/resnet18\.a1_in1k', got "):
        load_model(source)


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "3", 10**7])
def test_a_wrong_number_of_classes_is_an_option_error(value):
    with pytest.raises(OptionError, match=r"^num_classes: expected a whole number from 1 to 1000000, got "):
        load_model("small-cnn", num_classes=value)


@pytest.mark.parametrize("value", [0, 5, True, 1.0, "1"])
def test_a_wrong_number_of_channels_is_an_option_error(value):
    with pytest.raises(OptionError, match=r"^in_channels: expected a whole number from 1 to 4, got "):
        load_model("small-cnn", in_channels=value)


@pytest.mark.parametrize(("package", "source"), [("timm", "timm/resnet18"), ("torchvision", "torchvision/resnet18")])
def test_a_missing_package_is_named(package, source, monkeypatch):
    monkeypatch.delitem(sys.modules, f"convpeft.models.{package}_models", raising=False)
    monkeypatch.setitem(sys.modules, package, None)  # what Python keeps for a package that cannot be imported
    assert refused(source) == (
        f"model {source!r}: needs the package {package}; install it with pip install 'convpeft[train]'."
    )


# What a file records


def test_a_recorded_model_is_built_again(tmp_path):
    original = random_start("cifar-resnet/20", num_classes=4, in_channels=1)
    file = saved(original, tmp_path / "w.safetensors")
    model = load_model("cifar-resnet/20", num_classes=4, in_channels=1, weights=file)
    again = rebuild(ModelSource.from_dict(source_of(model).to_dict()))
    assert_same_weights(again, original)
    assert source_of(again) == source_of(model)


def test_a_recorded_model_can_be_given_another_weights_file(tmp_path):
    original = random_start("small-cnn")
    file = saved(original, tmp_path / "w.safetensors")
    recorded = ModelSource("small-cnn", None, 1, "elsewhere.safetensors", True)
    assert_same_weights(rebuild(recorded, weights=file), original)


def test_a_recorded_function_is_never_imported(monkeypatch):
    from convpeft.models import imported

    monkeypatch.setattr(imported.importlib, "import_module", lambda name: pytest.fail("imported"))
    recorded = ModelSource("convpeft_test_nets:plain", None, 3, None, True)
    with pytest.raises(ModelError, match=r"^model 'convpeft_test_nets:plain': a file never leads to an import; build "):
        rebuild(recorded)
