"""A bank gives every image of a batch what its own adapter, loaded alone on the base, would give it."""

import copy
import gc
import json
import pickle
import random
import shutil
import threading
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

import convpeft
from banked import IMAGES, adapted, network, one_by_one, saved
from contract.networks import randomise, relative_error
from convpeft.adapter_file import CONFIG, WEIGHTS

METHODS = convpeft.list_methods()
TOLERANCE = 1e-5  # promises.md: float32, evaluation
ROUNDING = 1e-6  # the same operations on batches of other sizes


def train_norms(method: str) -> str | None:
    """The policy under which norms have statistics of their own, where the method goes with it."""
    policies = convpeft.method_info(method).norm_policies
    return next((policy for policy in ("train", "adapt") if policy in policies), None)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Every method once, with the base's head, three or seven classes, frozen norms or norms of its own."""
    folder = tmp_path_factory.mktemp("adapters")
    found = {}
    for number, method in enumerate(METHODS):
        norm = train_norms(method) if number % 2 else None
        found[method] = saved(folder, method, number, num_classes=(None, 3, 7)[number % 3], norm=norm)
    return found


def mixed_rows(files: dict[str, Path], *, seed: int) -> list[str | None]:
    return random.Random(seed).choices([None, *files], k=len(IMAGES))


@pytest.fixture(scope="module")
def bank(files) -> convpeft.Bank:
    bank = convpeft.Bank(network())
    for name, path in files.items():
        bank.add(name, path)
    return bank


@pytest.mark.parametrize("method", METHODS)
def test_mixed_batch_equals_one_by_one(bank, files, method):
    others = random.Random(method).choices([None, *METHODS], k=len(IMAGES))
    rows = [method if number % 3 == 0 else other for number, other in enumerate(others)]
    found = bank.run(IMAGES, rows)
    own = [number for number, name in enumerate(rows) if name == method]
    expected = one_by_one(files[method], IMAGES[own])
    assert relative_error(torch.stack([found[number] for number in own]), expected) <= TOLERANCE


@pytest.mark.parametrize("seed", range(3))
def test_every_image_gets_its_own_adapter(bank, files, seed):
    rows = mixed_rows(files, seed=seed)
    for image, name, found in zip(IMAGES, rows, bank.run(IMAGES, rows), strict=True):
        expected = one_by_one(files.get(name), image.unsqueeze(0))[0]
        assert relative_error(found, expected) <= TOLERANCE, name


@pytest.mark.parametrize("method", METHODS)
def test_one_adapter_for_all_is_the_loaded_adapter_bit_for_bit(bank, files, method):
    with torch.no_grad():
        expected = convpeft.load(network(), files[method]).eval()(IMAGES)
    assert torch.equal(bank.run(IMAGES, method), expected)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("conv-adapter", {"scheme": "residual-parallel"}),
        ("full", {"include": ["parameter", "conv"]}),
        ("lora+bitfit", {"lora": {"rank": 2, "include": ["conv"]}, "bitfit": {"include": ["norm"]}}),
        ("lora", {"also_train": ["first.norm", "group_norm"]}),
        ("lora", {"init": "pissa"}),
        ("norm-tuning", {"norm": "adapt"}),
    ],
)
def test_blocks_loose_parameters_and_mixes_equal_one_by_one(tmp_path, method, arguments):
    paths = {"x": saved(tmp_path, method, 3, **arguments), "y": saved(tmp_path, "lora", 4, rank=3, num_classes=4)}
    bank = convpeft.Bank(network())
    for name, path in paths.items():
        bank.add(name, path)
    rows = ["x", None, "y", "x"] * 6
    for number, found in enumerate(bank.run(IMAGES, rows)):
        expected = one_by_one(paths.get(rows[number]), IMAGES[number : number + 1])[0]
        assert relative_error(found, expected) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_mixed_batch_in_other_precisions_equals_one_by_one(dtype):
    """An adapter of a bfloat16 base stays in float32; so near zero, bfloat16 keeps two digits."""
    base = network().to(dtype)
    models = {}
    for seed, method in enumerate(("lora", "dora", "tucker")):
        models[method] = randomise(convpeft.attach(network().to(dtype), method, num_classes=4), seed).eval()
    bank = convpeft.Bank(base)
    for name, model in models.items():
        bank.add(name, model)
    rows = [None, *models] * 6
    images = IMAGES.to(dtype)
    for number, found in enumerate(bank.run(images, rows)):
        model = models.get(rows[number] or "", base)
        with torch.no_grad():
            expected = model(images[number : number + 1])[0]
        assert relative_error(found, expected) <= {torch.float64: 1e-12, torch.bfloat16: 3e-2}[dtype]


def test_images_of_the_base_are_those_of_the_base_alone(bank, files):
    rows = mixed_rows(files, seed=9)
    with torch.no_grad():
        alone = network()(IMAGES)
    found = bank.run(IMAGES, rows)
    for number, name in enumerate(rows):
        if name is None:
            assert relative_error(found[number], alone[number]) <= ROUNDING
    assert torch.equal(bank.run(IMAGES), alone)
    assert torch.equal(torch.stack(bank.run(IMAGES, [None] * len(IMAGES))), alone)


def test_low_rank_updates_share_the_layers_own_work(tmp_path):
    """On a small image the wide layer runs once for all; the definition would run it once for each adapter."""
    hidden = nn.Linear(64 * 4, 64)  # low-rank updates of linear layers share its work too
    base = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Flatten(), hidden, nn.ReLU(), nn.Linear(64, 2)).eval()
    bank = convpeft.Bank(base)
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(randomise(convpeft.attach(copy.deepcopy(base), "lora", rank=2), seed).eval())
        bank.add(str(seed), models[-1])
    sizes = []
    convolve, images = nn.Conv2d._conv_forward, torch.randn(6, 64, 2, 2)

    def counted(self: nn.Conv2d, x: Tensor, *rest: Tensor | None) -> Tensor:
        sizes.append(len(x))
        return convolve(self, x, *rest)

    rows = ["0", "1", "2", None, "1", "0"]
    bank.run(images, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Conv2d, "_conv_forward", counted)
        found = bank.run(images, rows)
    assert sizes == [6]
    for number, name in enumerate(rows):
        model = base if name is None else models[int(name)]
        with torch.no_grad():
            assert relative_error(found[number], model(images[number : number + 1])[0]) <= TOLERANCE


def test_heads_of_different_sizes_give_outputs_of_their_sizes(bank, files):
    names = [None, *METHODS[:3]]
    lengths = [len(row) for row in bank.run(IMAGES[:4], names)]
    assert lengths == [5, *(json.loads((files[m] / CONFIG).read_text())["num_classes"] or 5 for m in METHODS[:3])]


def test_heads_that_are_convolutions_may_differ_too():
    base = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    models = [convpeft.attach(copy.deepcopy(base.eval()), "lora", rank=1, num_classes=n).eval() for n in (2, 6)]
    bank = convpeft.Bank(base)
    for name, model in zip("ab", models, strict=True):
        bank.add(name, randomise(model, 1))
    found = bank.run(IMAGES[:3], ["b", None, "a"])
    with torch.no_grad():
        expected = [model(IMAGES[n : n + 1])[0] for n, model in ((0, models[1]), (1, base), (2, models[0]))]
    assert [len(row) for row in found] == [6, 4, 2]
    assert all(relative_error(*pair) <= TOLERANCE for pair in zip(found, expected, strict=True))


def test_eight_threads_get_the_answers_of_one(files):
    """With room for three of six adapters, so that they come and go meanwhile."""
    chosen = ("lora", "dora", "bitfit", "full", "conv-adapter", "ssf")
    bank = convpeft.Bank(network(), capacity=3)
    for name in chosen:
        bank.add(name, files[name])
    requests = [random.Random(seed).choices([None, *chosen], k=6) for seed in range(12)]
    requests += [[name] for name in chosen]
    answers = [bank.run(IMAGES[: len(names)], names) for names in requests]
    wrong: list[object] = []

    def work(seed: int) -> None:
        source = random.Random(seed)
        try:
            for _ in range(50):
                number = source.randrange(len(requests))
                found = bank.run(IMAGES[: len(requests[number])], requests[number])
                if not all(torch.equal(a, b) for a, b in zip(found, answers[number], strict=True)):
                    wrong.append(requests[number])
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(bank.loaded) <= 3


def test_least_recently_used_adapter_makes_room_and_is_read_again(tmp_path):
    bank = convpeft.Bank(network(), capacity=2)
    for seed in range(3):
        bank.add(str(seed), saved(tmp_path, "lora", seed, rank=1))
    assert bank.names == ("0", "1", "2")
    assert bank.loaded == ("0", "1")  # one that nobody has asked for drives none out
    before = bank.run(IMAGES, "1")
    bank.run(IMAGES, "0")
    assert bank.loaded == ("1", "0")  # asked for last, though read first
    bank.run(IMAGES, "2")
    assert bank.loaded == ("0", "2")
    assert torch.equal(bank.run(IMAGES, "1"), before)
    assert bank.loaded == ("2", "1")


def test_more_adapters_in_one_batch_than_stay_in_memory(tmp_path):
    bank = convpeft.Bank(network(), capacity=1)
    paths = [saved(tmp_path, "lora", seed, rank=1) for seed in range(4)]
    for seed, path in enumerate(paths):
        bank.add(str(seed), path)
    for path, found in zip(paths, bank.run(IMAGES[:4], list("0123")), strict=True):
        assert relative_error(found, one_by_one(path, IMAGES[paths.index(path)].unsqueeze(0))[0]) <= TOLERANCE
    assert len(bank.loaded) == 1


def test_adapter_dropped_in_the_middle_of_a_call_finishes_it(tmp_path):
    bank = convpeft.Bank(network(), capacity=1)
    paths = [saved(tmp_path, "lora", seed, rank=1) for seed in range(2)]
    for seed, path in enumerate(paths):
        bank.add(str(seed), path)
    inside: list[tuple[str, ...]] = []

    def drop(*_: object) -> None:
        if not inside:
            inside.append(())
            other = threading.Thread(target=lambda: (bank.run(IMAGES[:1], "1"), bank.remove("0")))
            other.start()
            other.join()
            inside.append(bank.names + bank.loaded)

    bank._routed.first.register_forward_pre_hook(drop)
    found = bank.run(IMAGES, "0")
    assert inside[1] == ("1", "1")
    with torch.no_grad():
        assert torch.equal(found, convpeft.load(network(), paths[0]).eval()(IMAGES))


def test_adapter_from_a_model_stays_in_memory(tmp_path):
    model = adapted("dora", 5, num_classes=2)
    bank = convpeft.Bank(network(), capacity=1)
    bank.add("mine", model)
    for seed in range(2):
        bank.add(str(seed), saved(tmp_path, "lora", seed, rank=1))
        bank.run(IMAGES, str(seed))
    assert bank.loaded == ("mine", "1")
    expected = model.eval()(IMAGES)
    randomise(model, 6)  # training goes on, the bank has a copy
    assert torch.equal(bank.run(IMAGES, "mine"), expected)


def test_classes_are_those_of_the_file(tmp_path):
    bank = convpeft.Bank(network())
    bank.add("named", saved(tmp_path, "lora", num_classes=2, classes=["cat", "dog"]))
    bank.add("nameless", saved(tmp_path, "bitfit"))
    assert bank.classes("named") == ("cat", "dog")
    assert bank.classes("nameless") is None


@pytest.mark.parametrize("name", ["", ".", "a.b:c%", "../..", "\n", "ü 漢", "default", "x" * 5000])
def test_any_string_is_a_name(tmp_path, name):
    path = saved(tmp_path, "lora", rank=1)
    bank = convpeft.Bank(network())
    bank.add(name, path)
    found = bank.run(IMAGES[:2], [name, None])[0]
    assert relative_error(found, one_by_one(path, IMAGES[:1])[0]) <= TOLERANCE
    bank.remove(name)
    assert bank.names == ()


def test_model_is_left_as_it_was(bank, files):
    model = network().train()
    model.first.eval()
    modes = [module.training for module in model.modules()]
    types = [type(module) for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    bank = convpeft.Bank(model)
    bank.add("full", files["full"])
    bank.run(IMAGES, ["full", None] * 12)
    assert [module.training for module in model.modules()] == modes
    assert [type(module) for module in model.modules()] == types
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(key in before for key in model.state_dict())


def test_nothing_has_a_gradient_and_gradient_mode_is_kept(bank):
    images = IMAGES.clone().requires_grad_()
    assert not bank.run(images, "lora").requires_grad
    assert not any(row.requires_grad for row in bank.run(images, ["lora", "dora"] * 12))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("do", [copy.copy, copy.deepcopy, pickle.dumps])
def test_bank_is_neither_copied_nor_pickled(bank, do):
    with pytest.raises(convpeft.ModelError, match="a Bank is neither copied nor pickled"):
        do(bank)


def storages(thing: object) -> dict[int, int]:
    """Bytes of every tensor storage that is reachable from an object, each once."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    waiting = [thing]
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, type):
            continue
        seen.add(id(each))
        if isinstance(each, Tensor):
            found[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
        elif type(each).__module__.split(".")[0] in ("convpeft", "torch", "torchvision", "builtins", "collections"):
            waiting += [] if callable(each) and not isinstance(each, nn.Module) else gc.get_referents(each)
    return found


def test_hundred_adapters_take_the_memory_of_their_numbers(tmp_path):
    torch.manual_seed(0)
    base = torchvision.models.resnet18(num_classes=10).eval()
    own = sum(storages(base).values())
    model = convpeft.attach(copy.deepcopy(base), "lora", rank=4)
    path = convpeft.save(model, tmp_path / "a")
    numbers = 4 * sum(p.numel() for p in convpeft.trainable_parameters(model))
    bank = convpeft.Bank(base, capacity=100)
    for number in range(100):
        bank.add(str(number), path)
    assert len(bank.loaded) == 100
    taken = sum(storages(bank).values())
    assert own + 100 * numbers <= taken < own + 1.2 * 100 * numbers


def test_wrong_base_is_refused(tmp_path):
    path = saved(tmp_path, "lora")
    bank = convpeft.Bank(network(seed=1))
    with pytest.raises(convpeft.AdapterFileError, match=r"made for the base [0-9a-f]{16}, this model is [0-9a-f]{16}"):
        bank.add("a", path)
    with pytest.raises(convpeft.ModelError, match=r"the adapted model's base is [0-9a-f]{16}, the bank's is"):
        bank.add("a", adapted("lora"))
    assert bank.names == ()


def test_base_that_was_trained_meanwhile_is_refused(tmp_path):
    model = network()
    bank = convpeft.Bank(model)
    with torch.no_grad():
        model.stem.weight[0, 0, 0, 0] += 1
    with pytest.raises(convpeft.AdapterFileError, match="made for the base"):
        bank.add("a", saved(tmp_path, "lora"))


def test_damaged_file_is_refused_also_when_it_is_read_again(tmp_path):
    bank = convpeft.Bank(network(), capacity=1)
    paths = [saved(tmp_path, "lora", seed) for seed in range(3)]
    for name, path in zip("ab", paths, strict=False):
        bank.add(name, path)
    for path in paths[1:]:
        data = bytearray((path / WEIGHTS).read_bytes())
        data[-3] ^= 1
        (path / WEIGHTS).write_bytes(data)
    with pytest.raises(convpeft.AdapterFileError, match="is not the one that was saved"):
        bank.add("c", paths[2])
    with pytest.raises(convpeft.AdapterFileError, match="is not the one that was saved"):
        bank.run(IMAGES, ["a", "b"] * 12)
    shutil.rmtree(paths[1])
    with pytest.raises(convpeft.AdapterFileError, match="holds no adapter"):
        bank.run(IMAGES, "b")
    assert len(bank.run(IMAGES, "a")) == len(IMAGES)


def test_file_that_another_adapter_has_taken_is_refused(tmp_path):
    bank = convpeft.Bank(network(), capacity=1)
    bank.add("a", saved(tmp_path, "lora", 0))
    bank.add("b", saved(tmp_path, "lora", 1))
    convpeft.save(adapted("lora", 2), tmp_path / "lora-1")
    with pytest.raises(convpeft.AdapterFileError, match="is another adapter than the one that was added as 'b'"):
        bank.run(IMAGES, "b")


def test_adapter_on_top_of_others_is_refused(tmp_path):
    model = convpeft.attach(adapted("lora"), "bitfit", name="second")
    convpeft.save(model, tmp_path / "second", name="second")
    bank = convpeft.Bank(network())
    with pytest.raises(convpeft.AdapterFileError, match="a bank runs one adapter an image"):
        bank.add("a", tmp_path / "second")
    with pytest.raises(convpeft.ModelError, match="and 2 are attached to this model"):
        bank.add("a", model)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("lroa", "no adapter is called 'lroa' in this bank. Did you mean 'lora'?"),
        (["lora", "lroa"], "no adapter is called 'lroa' in this bank"),
        (["lora"], "names: expected one for each of 2 images, got 1."),
    ],
)
def test_wrong_names_are_refused(bank, names, message):
    with pytest.raises(convpeft.OptionError, match=message):
        bank.run(IMAGES[:2], names)


def test_name_in_use_and_wrong_arguments_are_refused(bank, files):
    with pytest.raises(convpeft.OptionError, match="name='lora' is in use in this bank"):
        bank.add("lora", files["lora"])
    with pytest.raises(convpeft.OptionError, match=r"name=None is not a string. None stands for the base"):
        bank.add(None, files["lora"])
    with pytest.raises(convpeft.OptionError, match="no adapter is called 'x' in this bank"):
        bank.remove("x")
    with pytest.raises(convpeft.OptionError, match="a bank holds at least 1 adapter"):
        convpeft.Bank(network(), capacity=0)
    with pytest.raises(convpeft.OptionError, match=r"capacity=1\.5 is out of range"):
        convpeft.Bank(network(), capacity=1.5)
    with pytest.raises(convpeft.ModelError, match="a bank starts from the base alone"):
        convpeft.Bank(adapted("lora"))


class Odd(nn.Module):
    """A network that is odd in one way behind a convolution."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv = nn.Conv2d(3, 8, 3)
        self.linear = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> object:
        x = self.conv(x).flatten(2).mean(2)
        if self.way == "mixes":
            x = x - x.mean(0, keepdim=True)
        elif self.way == "rows":
            x = self.linear(x.unsqueeze(0).expand(3, -1, -1).flatten(0, 1)).unflatten(0, (3, -1))[0]
        elif self.way == "axis":  # images on the second axis, of two as many as tokens
            x = self.linear(x.unsqueeze(0).expand(24, -1, -1))[0]
        elif self.way == "reads":
            x = nn.functional.linear(x, self.linear.weight)
        elif self.way == "attention":
            x = self.attention(x.unsqueeze(1), x.unsqueeze(1), x.unsqueeze(1))[0].squeeze(1)
        x = self.head(x)
        return {"logits": x} if self.way == "dict" else x


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("mixes", "this network mixes the images of a batch"),
        ("rows", "layer 'linear' does not take one row an image"),
        ("axis", "layer 'linear' does not take one row an image"),
        ("reads", "another module reads the weight of layer 'linear' past its forward"),
        ("dict", "this network returns dict for 2 images"),
    ],
)
def test_network_in_which_images_cannot_be_told_apart_is_refused(way, message):
    torch.manual_seed(0)
    base = Odd(way).eval()
    models = [randomise(convpeft.attach(copy.deepcopy(base), "lora", rank=2), seed).eval() for seed in range(2)]
    bank = convpeft.Bank(base)
    for name, model in zip("ab", models, strict=True):
        bank.add(name, model)
    with pytest.raises(convpeft.ModelError, match=message):
        bank.run(IMAGES, ["a", "b"] * 12)
    if way != "dict":  # one adapter a call works on every network
        with torch.no_grad():
            assert torch.equal(bank.run(IMAGES, "a"), models[0](IMAGES))


def test_attention_works_with_one_adapter_and_refuses_two():
    torch.manual_seed(0)
    base = Odd("attention").eval()
    model = randomise(convpeft.attach(copy.deepcopy(base), "full", include=["attention"]), 1).eval()
    bank = convpeft.Bank(base)
    bank.add("a", model)
    with torch.no_grad():
        assert relative_error(bank.run(IMAGES, "a"), model(IMAGES)) <= TOLERANCE
    with pytest.raises(convpeft.ModelError, match="cannot be told apart"):
        bank.run(IMAGES, ["a", None] * 12)


def test_outputs_that_are_no_classes_are_refused_for_unequal_heads():
    base = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 4))
    turned = nn.Sequential(*base.eval(), nn.Unflatten(1, (1, -1)))
    bank = convpeft.Bank(turned)
    bank.add("a", randomise(convpeft.attach(copy.deepcopy(turned), "lora", num_classes=2), 1))
    with pytest.raises(convpeft.ModelError, match=r"this network returns \(2, 1, 4\) for 2 images and 4 classes"):
        bank.run(IMAGES[:2], ["a", None])


class Pair(nn.Module):
    """A module with a tensor of its own that returns two."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.gain * x, x


class TakesFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair, self.conv, self.head = Pair(), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.pair(x)[0]).mean((2, 3)))


def test_layer_that_returns_two_tensors_is_refused():
    base = TakesFirst().eval()
    bank = convpeft.Bank(base)
    bank.add("a", randomise(convpeft.attach(copy.deepcopy(base), "full", include=["parameter"]), 1))
    with pytest.raises(convpeft.ModelError, match="layer 'pair' does not return one tensor"):
        bank.run(IMAGES, ["a", None] * 12)


def test_layer_with_a_forward_on_the_instance_is_refused():
    model = network()
    model.deep.forward = model.deep.forward
    with pytest.raises(convpeft.ModelError, match="has a forward of its own put on the instance"):
        convpeft.Bank(model)


def test_no_images_give_no_outputs(bank):
    assert bank.run(IMAGES[:0], []) == []
