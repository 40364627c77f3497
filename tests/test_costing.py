"""What a step costs is counted as it can be counted by hand, and counting leaves no trace on the model."""

import json

import pytest
import torch
from torch import Tensor, nn

import convpeft
from contract.networks import randomise
from convpeft import training_cost
from convpeft.errors import ModelError

BATCH, SIZE = 2, 16
IMAGES = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
POSITIONS = BATCH * SIZE * SIZE
FLOAT = 4  # bytes


def network() -> nn.Sequential:
    """A convolution with a norm, a grouped one without, and a classifier."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.Conv2d(32, 32, 3, padding=1, groups=4)
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)
    return nn.Sequential(first, nn.BatchNorm2d(32), nn.ReLU(), second, nn.ReLU(), *ends).eval()


FIRST, SECOND, LAST = POSITIONS * 32 * 3 * 9, POSITIONS * 32 * 8 * 9, BATCH * 32 * 5  # multiplications of a forward


def adapted(method: str = "lora", **options) -> nn.Module:
    return randomise(convpeft.attach(network(), method, **options), 1)


def test_full_fine_tuning_costs_what_a_hand_counts():
    cost = training_cost(adapted(), IMAGES).full
    assert cost.forward == FIRST + SECOND + LAST
    assert cost.backward == FIRST + 2 * SECOND + 2 * LAST  # no gradient of the images
    assert cost.multiplications == cost.forward + cost.backward
    assert cost.trained == sum(each.numel() for each in network().parameters())


def test_hybrid_kernel_costs_what_a_hand_counts():
    rank = 4
    model = adapted(rank=rank, include=["0"])
    convpeft.set_kernels(model, kernel="hybrid")
    cost = training_cost(model, IMAGES)
    built = 32 * 27 * rank  # up @ down
    thin, pairs = POSITIONS * rank * 27, POSITIONS * rank * 32
    assert cost.adapted.forward == FIRST + SECOND + LAST + built
    # gradients of the inputs behind; z = down * x with grad_up, then h = up^T g with grad_down
    assert cost.adapted.backward == SECOND + LAST + 2 * thin + 2 * pairs
    assert cost.adapted.trained == rank * (27 + 32)
    (layer,) = [each for each in cost.layers if each.path == "0"]
    assert (layer.kernel, layer.norm, layer.unfolded) == ("hybrid", "1", None)
    assert layer.multiplications == FIRST + built


def test_kept_bytes_are_those_that_a_hand_counts():
    model = adapted("lora", rank=4, include=["0"])
    convpeft.set_kernels(model, kernel="hybrid", layout="contiguous")
    cost = training_cost(model, IMAGES)
    images, channels = POSITIONS * 3 * FLOAT, POSITIONS * 32 * FLOAT
    (layer,) = [each for each in cost.layers if each.path == "0"]
    assert images <= layer.kept <= images + 1000  # and the two factors, which a scale has multiplied
    most = images + 3 * channels  # what goes into the norm, into the second convolution and into the pooling
    assert most <= cost.full.kept <= most + 1000


def independently_kept(model: nn.Module, images: Tensor) -> int:
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.detach()) or each, lambda each: each):
        output = model.train()(images).float().square().mean()
    sizes = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in kept}
    del output
    return sum(size for place, size in sizes.items() if place not in own)


@pytest.mark.parametrize("method", ["lora", "lora-fa", "bitfit", "residual-parallel"])
def test_kept_bytes_are_those_of_a_plain_step(method):
    model = adapted(method)
    found = training_cost(model, IMAGES).adapted.kept
    plain = independently_kept(model, IMAGES)
    assert abs(found - plain) <= 64  # the small tensors of the loss


@pytest.mark.parametrize("method", ["lora", "lora-fa"])
def test_layers_run_as_in_a_plain_step(method):
    model = adapted(method)
    cost = training_cost(model, IMAGES)
    model.train()(IMAGES).sum().backward()
    plan = convpeft.kernels_of(model)
    assert {each.path: each.kernel for each in cost.layers} == dict(plan.sites)
    assert {each.path: each.norm for each in cost.layers if each.norm is not None} == dict(plan.folded)
    assert {each.path: each.unfolded for each in cost.layers if each.unfolded is not None} == dict(plan.unfolded)
    assert cost.layout == plan.layout


def test_what_is_not_folded_says_why():
    (layer,) = [each for each in training_cost(adapted(), IMAGES).layers if each.path == "3"]
    assert layer.norm is None
    assert layer.unfolded == "no norm with fixed statistics follows, but ReLU"


class Viewing(nn.Module):
    """A network that asks how its numbers lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).contiguous().view(x.shape[0], -1)


def test_layout_that_has_to_stay_says_why():
    cost = training_cost(convpeft.attach(Viewing().eval(), "lora", include=["layer"]), IMAGES)
    assert cost.layout == "contiguous"
    assert cost.stays == "its forward calls view"


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    grads = {f"{name}.grad": each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {name: each.detach().clone() for name, each in (tensors | grads).items()}


@pytest.mark.parametrize("norm", ["frozen", "train"])
def test_counting_leaves_no_trace(norm):
    model = adapted(norm=norm)
    model.train()[3].eval()
    model(IMAGES).sum().backward()
    torch.manual_seed(9)
    before, modes, random_state = whole_state(model), [each.training for each in model.modules()], torch.get_rng_state()
    attributes = [set(each.__dict__) for each in model.modules()]
    trained = [each.requires_grad for each in model.parameters()]
    training_cost(model, IMAGES)
    after = whole_state(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(each, after[name]) for name, each in before.items())
    assert modes == [each.training for each in model.modules()]
    assert attributes == [set(each.__dict__) for each in model.modules()]
    assert trained == [each.requires_grad for each in model.parameters()]
    assert torch.equal(random_state, torch.get_rng_state())


def test_forward_of_a_layers_own_is_called_and_kept():
    model, called = adapted(), []
    layer = model[0]

    def own(x: Tensor) -> Tensor:
        called.append(x.shape)
        return type(layer).forward(layer, x)

    layer.forward = own
    training_cost(model, IMAGES)
    assert called
    assert layer.forward is own


def test_figures_are_plain_values():
    cost = training_cost(adapted(), IMAGES)
    told = json.loads(json.dumps(cost.to_dict()))
    assert told["full"]["forward"] == cost.full.forward
    assert told["layers"][0]["kernel"] == cost.layers[0].kernel


def test_images_that_the_model_cannot_take_are_refused():
    with pytest.raises(ModelError, match=r"cannot be trained on images 2x5x8x8 .* Give another batch or size"):
        training_cost(adapted(), torch.ones(2, 5, 8, 8))


def test_model_of_which_nothing_is_trained_is_refused():
    model = adapted()
    model.requires_grad_(False)
    with pytest.raises(ModelError, match="nothing of this model is trained, so there is no step to count"):
        training_cost(model, IMAGES)
