"""C05, C07: a saved adapter predicts the same anywhere, and a wrong base is refused."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import convpeft
from contract.methods_under_test import FEWER, METHODS, attach_anything, options_for
from contract.networks import Plan, plans, randomise
from contract.saved_networks import NETWORK, network, trained
from convpeft.fingerprints import fingerprint

pytestmark = [pytest.mark.contract, pytest.mark.filterwarnings("ignore:Using padding='same'")]
SHARED_FOLDER = settings(FEWER, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

PREDICT = """
import sys
from pathlib import Path
from typing import Any
import numpy as np
import torch
torch.set_num_threads(1)
import convpeft
{network}
folder = Path(sys.argv[1])
images = torch.from_numpy(np.load(folder / "images.npy"))
for adapter in sorted(folder.glob("adapter-*")):
    model = convpeft.load(network().eval(), adapter)
    np.save(folder / f"{{adapter.name}}.npy", model(images).detach().numpy())
"""


@pytest.mark.promise("C05")
def test_new_process_predicts_the_same_bits(tmp_path: Path) -> None:
    images = torch.randn(5, 3, 16, 16)
    np.save(tmp_path / "images.npy", images.numpy())
    expected: dict[str, Tensor] = {}
    for method in METHODS:
        for policy in convpeft.method_info(method).norm_policies:
            for classes in (None, 6):
                model = trained(method, policy, classes)
                name = f"adapter-{method}-{policy}-{classes}"
                convpeft.save(model, tmp_path / name)
                expected[name] = model(images).detach()
    script = tmp_path / "predict.py"
    script.write_text(PREDICT.format(network=NETWORK), encoding="utf-8")
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, capture_output=True, timeout=120)
    for name, logits in expected.items():
        assert torch.equal(torch.from_numpy(np.load(tmp_path / f"{name}.npy")), logits), name


@pytest.mark.promise("C05")
@SHARED_FOLDER
@given(plan=plans(), method=st.sampled_from(METHODS), data=st.data())
def test_loading_on_a_fresh_base_gives_the_same_bits(
    tmp_path: Path, plan: Plan, method: str, data: st.DataObject
) -> None:
    model, x = plan.build(), plan.example()
    base = copy.deepcopy(model)
    policy = data.draw(st.sampled_from(convpeft.method_info(method).norm_policies))
    classes = data.draw(st.sampled_from([None, 3]))
    randomise(attach_anything(model, method, norm=policy, num_classes=classes, **data.draw(options_for(method))))
    convpeft.save(model, tmp_path / "adapter")
    loaded = convpeft.load(base, tmp_path / "adapter")
    assert torch.equal(loaded(x), model(x))
    assert list(loaded.state_dict()) == list(model.state_dict())
    convpeft.save(loaded, tmp_path / "again")
    for file in (tmp_path / "adapter").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@pytest.mark.promise("C05")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_loading_in_other_dtypes_gives_the_same_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    base = network().to(dtype).eval()
    x = torch.randn(2, 3, 16, 16).to(dtype)
    model = randomise(convpeft.attach(copy.deepcopy(base), "lora", norm="train", num_classes=3))
    convpeft.save(model, tmp_path / "adapter")
    assert torch.equal(convpeft.load(base, tmp_path / "adapter")(x), model(x))


def one_ulp(model: nn.Module, key: str) -> nn.Module:
    tensor = model.state_dict()[key]
    flat = tensor.view(-1)
    flat[0] = torch.nextafter(flat[0], torch.tensor(torch.inf))
    return model


@pytest.mark.promise("C07")
@pytest.mark.parametrize("key", [key for key in network().state_dict() if "num_batches" not in key])
def test_base_that_differs_by_one_unit_in_the_last_place_is_refused(tmp_path: Path, key: str) -> None:
    convpeft.save(trained("lora"), tmp_path / "adapter")
    with pytest.raises(convpeft.AdapterFileError) as refusal:
        convpeft.load(one_ulp(network(), key), tmp_path / "adapter")
    assert repr(key) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.promise("C07")
def test_refusal_names_both_fingerprints_and_leaves_the_model_alone(tmp_path: Path) -> None:
    convpeft.save(trained("lora"), tmp_path / "adapter")
    other = one_ulp(network(), "0.weight")
    keys = list(other.state_dict())
    with pytest.raises(convpeft.AdapterFileError) as refusal:
        convpeft.load(other, tmp_path / "adapter")
    for model in (network(), other):
        assert fingerprint(model)[0][:16] in str(refusal.value)
    assert list(other.state_dict()) == keys
    assert type(other[0]) is nn.Conv2d


@pytest.mark.promise("C07")
def test_base_with_another_class_count_is_refused(tmp_path: Path) -> None:
    convpeft.save(trained("lora"), tmp_path / "adapter")
    other = network()
    other[9] = nn.Linear(6, 5)
    remedy = "Load the weights it was trained on, or force=True"
    with pytest.raises(convpeft.AdapterFileError, match=f"made for the base .*{remedy}"):
        convpeft.load(other, tmp_path / "adapter")


@pytest.mark.promise("C07")
def test_base_with_extra_and_missing_layers_is_refused(tmp_path: Path) -> None:
    convpeft.save(trained("lora"), tmp_path / "adapter")
    with pytest.raises(convpeft.AdapterFileError, match="made for the base"):
        convpeft.load(nn.Sequential(*network(), nn.Linear(4, 4)), tmp_path / "adapter")
    with pytest.raises(convpeft.AdapterFileError, match="made for the base"):
        convpeft.load(network()[:-1], tmp_path / "adapter")


@pytest.mark.promise("C07")
def test_forced_load_on_another_base_warns(tmp_path: Path) -> None:
    convpeft.save(trained("lora"), tmp_path / "adapter")
    with pytest.warns(UserWarning, match="force=True"):
        convpeft.load(one_ulp(network(), "0.weight"), tmp_path / "adapter", force=True)


@pytest.mark.promise("C07")
def test_channels_last_resave_and_batch_counter_are_accepted(tmp_path: Path) -> None:
    convpeft.save(trained("lora"), tmp_path / "adapter")
    convpeft.load(network().to(memory_format=torch.channels_last), tmp_path / "adapter")
    torch.save(network().state_dict(), tmp_path / "weights.pt")
    resaved = network()
    resaved.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    resaved[1].num_batches_tracked += 5
    convpeft.load(resaved, tmp_path / "adapter")


def test_adapter_trained_on_another_is_refused_without_it(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 16, 16)
    model = randomise(convpeft.attach(network().eval(), "lora", name="first"), 1)
    randomise(convpeft.attach(model, "lora", name="second"), 2, name="second")
    for name in ("first", "second"):
        convpeft.save(model, tmp_path / name, name=name)
    with pytest.raises(convpeft.AdapterFileError, match=r"trained on top of 1 other adapters.*force=True"):
        convpeft.load(network(), tmp_path / "second")
    loaded = convpeft.load(network().eval(), tmp_path / "first", name="first")
    convpeft.load(loaded, tmp_path / "second", name="second")
    assert torch.equal(loaded(x), model(x))
