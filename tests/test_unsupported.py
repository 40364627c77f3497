"""Models and layers on which an adapter would be silently wrong are refused by name."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.prune import l1_unstructured

import convpeft
from convpeft.injection import adapted_layers
from small_network import X, adapted, network

pytestmark = pytest.mark.promise("B07")


def test_live_norm_put_in_after_attaching_is_found(tmp_path: Path) -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(adapted())
    for use in (convpeft.trainable_parameters, convpeft.param_groups, lambda m: convpeft.save(m, tmp_path / "a")):
        with pytest.raises(convpeft.ModelError, match=r"norm layer '1' \(SyncBatchNorm\) was replaced after attaching"):
            use(model)
    assert not (tmp_path / "a").exists()


def test_sync_batchnorm_converted_before_attaching_is_frozen() -> None:
    model = convpeft.attach(nn.SyncBatchNorm.convert_sync_batchnorm(network()), "lora").train()
    before = model[1].running_mean.clone()
    model(X)
    assert torch.equal(model[1].running_mean, before)


def test_data_parallel_is_refused() -> None:
    with pytest.raises(convpeft.ModelError, match=r"wrapped in DataParallel\. Attach to the model first"):
        convpeft.attach(nn.DataParallel(network()), "lora")


def test_data_parallel_replica_of_an_adapted_layer_is_refused() -> None:
    replica = adapted()[0]._replicate_for_data_parallel()
    with pytest.raises(convpeft.ModelError, match="cannot be assigned"):
        replica.weight = torch.zeros(8, 3, 3, 3)


def test_distributed_wrapper_is_refused(tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(network())
        with pytest.raises(
            convpeft.ModelError, match=r"wrapped in DistributedDataParallel\. Attach to the model first"
        ):
            convpeft.attach(wrapped, "lora")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("index", [0, 1, 2])
def test_lazy_layer_is_refused_by_name(index: int) -> None:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 2)]
    layers[index] = [nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.LazyConv2d(8, 3)][index]
    with pytest.raises(convpeft.ModelError, match=rf"layer '{index}' is lazy.*Run one forward pass"):
        convpeft.attach(nn.Sequential(*layers), "lora")


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda layer: l1_unstructured(layer, "weight", 0.5),
    ],
)
def test_layer_that_computes_its_weight_is_refused_by_name(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = network()
    wrap(model[0])
    with pytest.raises(convpeft.ModelError, match=r"layer '0'.*computes its weight.*remove_parametrizations"):
        convpeft.attach(model, "lora")


def test_parametrized_norm_is_refused_by_name() -> None:
    model = network()
    nn.utils.parametrize.register_parametrization(model[1], "weight", nn.Softplus())
    with pytest.raises(convpeft.ModelError, match="layer '1'"):
        convpeft.attach(model, "lora")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, X)])
def test_torchscript_is_refused(make: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(
        convpeft.ModelError, match=r"the model is TorchScript, whose layers cannot be adapted\. Attach before"
    ):
        convpeft.attach(make(network()), "lora")


def test_layer_that_owns_the_name_of_the_slots_is_refused() -> None:
    model = network()
    model[5].convpeft = "mine"
    with pytest.raises(convpeft.ModelError, match="already has an attribute 'convpeft'"):
        convpeft.attach(model, "lora", include=["linear"])


def test_submodule_that_has_the_name_of_the_slots_is_refused_or_adapted() -> None:
    model = nn.Sequential()
    model.add_module("convpeft", nn.Conv2d(3, 8, 3))
    model.add_module("norm", nn.Conv2d(8, 8, 3))
    try:
        convpeft.attach(model, "lora")
    except convpeft.ModelError as error:
        assert "'convpeft'" in str(error)
    else:
        assert {path for path, _ in adapted_layers(model)} == {"convpeft", "norm"}


@pytest.mark.parametrize("layers", [[nn.ReLU()], [nn.Flatten(), nn.Linear(4, 2)]], ids=["nothing", "head alone"])
def test_model_without_a_convolution_says_so(layers: list[nn.Module]) -> None:
    with pytest.raises(convpeft.OptionError, match=r"method 'lora' finds no layer to adapt in this model\. Give"):
        convpeft.attach(nn.Sequential(*layers), "lora")


def float_network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)]
    return nn.Sequential(*layers).eval()


@pytest.mark.filterwarnings("ignore")  # torch.ao.quantization moves to another package
def test_quantised_layer_is_refused_by_name() -> None:
    from torch.ao import quantization

    model = nn.Sequential(quantization.QuantStub(), *float_network(), quantization.DeQuantStub()).eval()
    model.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    quantization.prepare(model, inplace=True)
    model(torch.rand(2, 3, 8, 8))
    quantization.convert(model, inplace=True)
    with pytest.raises(
        convpeft.OptionError, match=r"layer '1' \(Conv2d\) is quantised\. Adapt the model before it is quantised"
    ):
        convpeft.attach(model, "lora")


@pytest.mark.filterwarnings("ignore")
def test_float_layers_beside_a_quantised_one_are_adapted_right() -> None:
    from torch.ao import quantization

    images = torch.rand(2, 3, 8, 8)
    model = quantization.quantize_dynamic(float_network(), {nn.Linear})
    before = model(images)
    convpeft.attach(model, "lora")
    assert torch.equal(model(images), before)
    with torch.no_grad():
        for parameter in convpeft.trainable_parameters(model):
            parameter.normal_()
    adapted_output = model(images)
    assert not torch.equal(adapted_output, before)
    torch.testing.assert_close(convpeft.merged(model)(images), adapted_output)
    assert torch.equal(convpeft.detach(model)(images), before)


def test_model_without_memory_is_refused_by_name() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(
        convpeft.ModelError, match=r"layer '0' is on the meta device and has no weights\. Load them before attaching"
    ) as refusal:
        convpeft.attach(model, "lora")
    assert "\n" not in str(refusal.value)
    assert type(model[0]) is nn.Conv2d


def test_container_with_a_parameter_of_its_own_is_refused_by_name() -> None:
    class Scaled(nn.Sequential):
        def __init__(self, *layers: nn.Module) -> None:
            super().__init__(*layers)
            self.gain = nn.Parameter(torch.ones(1))

    model = nn.Sequential(Scaled(nn.Conv2d(3, 8, 3)), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(
        convpeft.ModelError, match=r"^'0' is a container that runs all its children\. Name a layer inside it\.$"
    ):
        convpeft.attach(model, "full", include=["parameter"])
    assert type(model[0]) is Scaled
