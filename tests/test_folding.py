"""A frozen norm folded into its convolution: the same function in training, and nothing else than that."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import convpeft
from contract.networks import randomise, relative_error
from convpeft.forwards import is_ours
from small_network import by_definition

X = torch.randn(4, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TOLERANCE = 1e-9


class Net(nn.Module):
    """Convolutions with a norm of their own, and some without."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.bn1 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.bn2 = nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.BatchNorm2d(8)
        self.skip, self.bn3 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.bare = nn.Conv2d(8, 6, 3)
        self.fc = nn.Linear(6, 4)
        for norm in (self.bn1, self.bn2, self.bn3):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.first(x)))
        x = torch.relu(self.bn2(self.depthwise(x)))
        y = self.skip(x)
        x = self.bn3(y) + y  # two operations read what `skip` returns
        return self.fc(torch.tanh(self.bare(x)).mean((2, 3)))


def adapted(method: str = "lora", **arguments: object) -> nn.Module:
    return randomise(convpeft.attach(Net().double(), method, **arguments), 1).train()


def gradients(model: nn.Module, run: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    x = X.clone().requires_grad_()
    output = (run or model)(x)
    wanted = [x, *convpeft.trainable_parameters(model)]
    return [output, *torch.autograd.grad(output.square().sum(), wanted, materialize_grads=True)]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    scale = max(float(each.detach().abs().max()) for each in expected)  # a bias before a live norm has no gradient
    for mine, theirs in zip(found, expected, strict=True):
        assert float((mine - theirs).detach().abs().max()) <= TOLERANCE * scale


@pytest.mark.promise("C02")
@pytest.mark.parametrize("method", ["lora", "lora-fa", "dora", "loha", "ssf", "bitfit", "norm-tuning", "probe", "full"])
def test_folded_network_is_the_same_function(method: str) -> None:
    model = adapted(method)
    found = gradients(model)
    trained = {"ssf", "bitfit", "norm-tuning", "full"}  # the norm itself is trained
    assert convpeft.kernels_of(model).folded == ({} if method in trained else {"first": "bn1", "depthwise": "bn2"})
    assert_same(found, gradients(by_definition(model)))


@pytest.mark.promise("C02")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("kernel", ["hybrid", "side", "fused", "weight"])
@pytest.mark.parametrize("method", ["lora", "lora-fa", "cp"])
def test_every_kernel_folds_the_same(method: str, kernel: str, layout: str) -> None:
    model = adapted(method, rank=2)
    convpeft.set_kernels(model, kernel=kernel, layout=layout)
    found = gradients(model)
    plan = convpeft.kernels_of(model)
    assert plan.folded == {"first": "bn1", "depthwise": "bn2"}
    assert plan.sites["first"] == ("lean" if method == "lora-fa" and kernel == "hybrid" else kernel)
    assert_same(found, gradients(by_definition(model)))


def test_reasons_are_told_for_what_is_not_folded() -> None:
    model = adapted()
    model(X)
    plan = convpeft.kernels_of(model)
    assert plan.unfolded == {
        "skip": "2 operations read its output",
        "bare": "no norm with fixed statistics follows, but tanh",
    }
    convpeft.set_kernels(model, fold=False)
    model(X)
    assert not convpeft.kernels_of(model).folded


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda model: model.first.register_forward_hook(lambda *_: None), "hooks look in"),
        (lambda model: model.bn1.register_forward_pre_hook(lambda *_: None), "hooks look in"),
        (lambda model: model.bn1.register_full_backward_hook(lambda *_: None), "hooks look in"),
        (lambda model: model.bn1.weight.requires_grad_(), "the norm's scale or shift is trained"),
        (lambda model: model.bn1.eval(), "the norm is in evaluation"),
        (lambda model: convpeft.attach(model, "lora", name="b", norm="adapt"), "the norm's statistics move"),
        (lambda model: convpeft.attach(model, "conv-adapter", name="b", include=["first"]), "a branch runs beside it"),
    ],
)
def test_norm_is_kept_where_folding_would_show(change: Callable[[nn.Module], object], why: str) -> None:
    model = adapted()
    change(model)
    found = gradients(model)
    assert convpeft.kernels_of(model).unfolded["first"] == why
    assert "first" not in convpeft.kernels_of(model).folded
    if "move" not in why:
        assert_same(found, gradients(by_definition(model)))


def test_large_weight_before_few_numbers_is_not_multiplied() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(16, 2))
    model = convpeft.attach(net, "dora", include=["conv"]).train()
    model(torch.randn(2, 16, 3, 3))
    assert convpeft.kernels_of(model).unfolded == {"0": "its weight is larger than what the norm runs on"}


def test_layer_that_is_called_by_itself_is_not_folded() -> None:
    model = adapted()
    model(X)
    assert "first" in convpeft.kernels_of(model).folded
    expected = nn.functional.conv2d(X, model.first.weight)
    assert relative_error(model.first(X), expected) <= TOLERANCE


def test_evaluation_is_the_definition_to_the_bit() -> None:
    model, untouched = adapted(), adapted()
    keys = list(model.state_dict())
    model(X).sum().backward()
    assert list(model.state_dict()) == keys
    assert torch.equal(model.eval()(X), untouched.eval()(X))
    with torch.no_grad():
        assert torch.equal(model.train()(X), untouched.eval()(X))


def test_copies_fold_into_their_own_norms() -> None:
    model = adapted()
    model(X)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        nn.init.normal_(twin.bn1.weight)
        expected = gradients(by_definition(copy.deepcopy(twin)))
        assert_same(gradients(twin), expected)
        assert "first" in convpeft.kernels_of(twin).folded
    assert_same(gradients(model), gradients(by_definition(adapted())))


def test_nothing_is_left_behind_after_detaching() -> None:
    model = adapted()
    model(X)
    assert any(is_ours(hook) for hook in model._forward_hooks.values())
    convpeft.detach(model)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not model._forward_hooks_always_called


def test_own_hooks_of_the_model_stay() -> None:
    model, seen = adapted(), []
    model.register_forward_hook(lambda *_: seen.append("after"), always_call=True)
    convpeft.detach(model)
    model(X)
    assert seen == ["after"]


def test_norm_that_is_replaced_later_is_noticed() -> None:
    model = adapted()
    model(X)
    model.bn1 = nn.Identity()
    with pytest.raises(convpeft.ModelError, match=r"folded into its convolution and then did not run.*fold=False"):
        model(X)


def test_input_that_is_changed_on_the_way_is_noticed() -> None:
    model = adapted()
    model(X)

    def forward(x: Tensor) -> Tensor:
        return model.bn1(model.first(x) + 1)

    model.forward = forward
    with pytest.raises(convpeft.ModelError, match=r"folded into its convolution and then got another input"):
        model(X)


def test_forward_that_fails_leaves_nothing_open() -> None:
    model = adapted()
    model(X)
    with pytest.raises(RuntimeError):
        model(X[:, :2])
    expected = nn.functional.conv2d(X, model.first.weight)
    assert relative_error(model.first(X), expected) <= TOLERANCE
    assert_same(gradients(model), gradients(by_definition(adapted())))


def test_checkpoint_inside_finds_what_it_kept() -> None:
    model = adapted()
    net = nn.Sequential(model)
    assert_same(
        gradients(model, lambda x: checkpoint(net, x, use_reentrant=False)), gradients(by_definition(adapted()))
    )

    class Inside(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = checkpoint(lambda x: torch.relu(self.bn1(self.first(x))), x, use_reentrant=False)
            x = torch.relu(self.bn2(self.depthwise(x)))
            return self.fc(torch.tanh(self.bare(self.bn3(self.skip(x)))).mean((2, 3)))

    for method in ("lora", "lora-fa"):
        inside = randomise(convpeft.attach(Inside().double(), method), 1).train()
        found = gradients(inside)
        assert "first" not in convpeft.kernels_of(inside).folded
        assert_same(found, gradients(by_definition(inside)))


def test_second_derivatives_go_through() -> None:
    found = []
    for model in (adapted(), adapted("lora-fa")):
        for each in (model, by_definition(copy.deepcopy(model))):
            wanted = [X.clone().requires_grad_(), *convpeft.trainable_parameters(each)]
            loss = each(wanted[0]).square().sum()
            first = torch.autograd.grad(loss, wanted, create_graph=True, materialize_grads=True)
            total = sum(gradient.square().sum() for gradient in first)
            found.append(torch.autograd.grad(total, wanted, materialize_grads=True))
    assert_same(list(found[0]), list(found[1]))
    assert_same(list(found[2]), list(found[3]))


def test_accumulated_steps_see_the_present_norm() -> None:
    """Nothing of a norm is remembered from one forward to the next."""
    model = adapted()
    model(X)
    model._modules["bn1"]._buffers["running_mean"].data.add_(1.0)
    with torch.no_grad():
        expected = model.eval()(X)
    assert relative_error(model.train()(X), expected) <= TOLERANCE


class Boxed(nn.Module):
    """A convolution in a box of its own, and the norm outside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.box = nn.Sequential(nn.Conv2d(3, 8, 3))
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.box(x)).mean((2, 3)))


def test_hook_on_a_box_around_the_convolution_sees_its_own_numbers() -> None:
    model, seen = randomise(convpeft.attach(Boxed().double(), "lora"), 1).train(), []
    model(X)
    assert convpeft.kernels_of(model).folded == {"box.0": "norm"}
    model.box.register_forward_hook(lambda _, __, output: seen.append(output))
    model(X)
    assert convpeft.kernels_of(model).unfolded["box.0"] == "hooks look in"
    assert relative_error(seen[0], nn.functional.conv2d(X, model.box[0].weight, model.box[0].bias)) <= TOLERANCE


class Keeping(Boxed):
    """A forward that puts the convolution's output where anybody can read it."""

    def forward(self, x: Tensor) -> Tensor:
        self.features = {"first": [self.box(x)]}
        return self.fc(self.norm(self.features["first"][0]).mean((2, 3)))


def test_output_that_the_network_keeps_is_the_convolutions_own() -> None:
    model = randomise(convpeft.attach(Keeping().double(), "lora"), 1).train()
    model(X)
    assert convpeft.kernels_of(model).unfolded == {"box.0": "the network keeps its output"}
    expected = nn.functional.conv2d(X, model.box[0].weight, model.box[0].bias)
    assert relative_error(model.features["first"][0], expected) <= TOLERANCE


def test_transforms_of_a_whole_network_are_right() -> None:
    model = adapted()
    names = [name for name, value in model.named_parameters() if value.requires_grad]
    values = {name: dict(model.named_parameters())[name].detach() for name in names}

    def loss(values: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(model, values, (image.unsqueeze(0),)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(values, X)
    for number, image in enumerate(X):
        alone = torch.autograd.grad(model(image.unsqueeze(0)).square().sum(), convpeft.trainable_parameters(model))
        for name, expected in zip(names, alone, strict=True):
            assert relative_error(found[name][number], expected) <= TOLERANCE


class Listing(Boxed):
    """A model that takes a list of images, as detectors do."""

    def forward(self, images: list[Tensor]) -> Tensor:
        return super().forward(torch.stack(images))


def test_model_of_lists_runs() -> None:
    model = randomise(convpeft.attach(Listing().double(), "lora"), 1).train()
    found = model(list(X))
    assert relative_error(found, by_definition(model)(list(X))) <= TOLERANCE
