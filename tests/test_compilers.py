"""An adapted model under compilers, exporters and reduced precision gives the numbers it gives by itself."""

from pathlib import Path

import pytest
import torch
from timm.layers import Conv2dSame, StdConv2d
from torch import Tensor, nn

import convpeft
from contract.networks import randomise, relative_error
from small_network import X, adapted

FLOAT32_TOLERANCE = 1e-5  # promises.md
ONNX_TOLERANCE = 1e-4  # promises.md, C12


class Geometries(nn.Module):
    """Every kind of convolution that one forward can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, (3, 2), stride=(1, 2), padding="valid", bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, groups=8, padding=2, dilation=2, padding_mode="reflect"),
            nn.GroupNorm(2, 8),
            nn.Conv2d(8, 12, 3, groups=4, padding="same", padding_mode="circular"),
            nn.ConvTranspose2d(12, 6, 3, stride=2, groups=3, output_padding=1),
            StdConv2d(6, 4, 3, stride=2),
            Conv2dSame(4, 4, 3, stride=2),
        )
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.layers(x).mean((2, 3)))


def geometries(method: str = "lora") -> nn.Module:
    torch.manual_seed(0)
    return randomise(convpeft.attach(Geometries().eval(), method))


@pytest.fixture
def fresh_compiler() -> None:
    """No graph that another test left behind."""
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("method", convpeft.list_methods())
def test_compiled_graph_gives_the_adapted_output(method: str) -> None:
    model = geometries(method)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert relative_error(compiled(X), model(X)) <= FLOAT32_TOLERANCE


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_graph_trains_like_the_plain_one() -> None:
    gradients = []
    for compiled in (False, True):
        model = geometries().train()
        run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        run(X).square().sum().backward()
        gradients.append([parameter.grad for parameter in convpeft.trainable_parameters(model)])
    assert all(relative_error(a, b) <= 100 * FLOAT32_TOLERANCE for a, b in zip(*gradients, strict=True))


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_graph_follows_a_change_of_active_adapters() -> None:
    model = geometries()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(X)
    convpeft.set_active(model, [])
    assert relative_error(compiled(X), model(X)) <= FLOAT32_TOLERANCE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("method", ["lora", "full"])
def test_inductor_gives_the_adapted_output(method: str) -> None:
    model = geometries(method)
    assert relative_error(torch.compile(model, fullgraph=True)(X), model(X)) <= 10 * FLOAT32_TOLERANCE


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", ["default", "v1.0 é:/"])
def test_exported_program_gives_the_adapted_output(strict: bool, name: str) -> None:
    torch.manual_seed(0)
    model = randomise(convpeft.attach(Geometries().eval(), "lora", name=name))
    program = torch.export.export(model, (X,), strict=strict)
    assert relative_error(program.module()(X), model(X)) <= FLOAT32_TOLERANCE


def test_exported_layer_keeps_the_names_of_its_inputs() -> None:
    plain = nn.Conv2d(3, 8, 3)
    expected = torch.export.export(plain, (X,)).graph_signature.user_inputs
    assert torch.export.export(convpeft.attach(plain, "lora"), (X,)).graph_signature.user_inputs == expected


# The exporter's own code warns; nothing here can change that.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("merged", [False, True])
def test_onnx_model_gives_the_adapted_output(tmp_path: Path, merged: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = geometries()
    expected = model(X).detach()
    file = tmp_path / "model.onnx"
    torch.onnx.export(convpeft.merged(model) if merged else model, (X,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file)
    found = session.run(None, {session.get_inputs()[0].name: X.numpy()})[0]
    assert float((torch.from_numpy(found) - expected).abs().max()) <= ONNX_TOLERANCE


# Precision.


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_model_cast_after_attaching_runs_in_its_dtype(dtype: torch.dtype) -> None:
    model = adapted().to(dtype)
    output = model(X.to(dtype))
    assert output.dtype == dtype
    assert torch.equal(convpeft.merged(model)(X.to(dtype)), output)


def test_small_updates_survive_in_a_bfloat16_model() -> None:
    layer = nn.Linear(64, 64, bias=False).bfloat16()
    convpeft.attach(layer, "lora", include=["linear"])
    assert all(parameter.dtype == torch.float32 for parameter in convpeft.trainable_parameters(layer))
    with torch.no_grad():
        for parameter in convpeft.trainable_parameters(layer):
            parameter.fill_(0.01)
    inner = dict(layer.named_parameters())
    delta = inner["convpeft.default:lora.up"] @ inner["convpeft.default:lora.down"]
    assert torch.equal(layer.weight, (inner["weight"].float() + delta).bfloat16())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_weights_are_built_in_float32_under_autocast(method: str) -> None:
    model = adapted(method)
    expected = model[0].weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model[0].weight, expected)
        output = model(X)
        output.float().square().sum().backward()
    assert output.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in convpeft.trainable_parameters(model))


def test_channels_last_gives_the_same_numbers() -> None:
    model = adapted()
    expected = model(X)
    model.to(memory_format=torch.channels_last)
    assert relative_error(model(X.to(memory_format=torch.channels_last)), expected) <= FLOAT32_TOLERANCE
