"""C01: a fresh adapter without a new head changes nothing, bit for bit."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

import convpeft
from contract.methods_under_test import METHODS, attach_anything, options_for
from contract.networks import Block, Plan, plans, randomise
from measuring import counted
from small_network import by_definition

pytestmark = [
    pytest.mark.contract,
    pytest.mark.promise("C01"),
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
]


def policies_of(method: str) -> tuple[str, ...]:
    return convpeft.method_info(method).norm_policies


@pytest.mark.parametrize("method", METHODS)
@given(plan=plans(), data=st.data())
def test_fresh_adapter_in_evaluation_gives_the_base_output(method: str, plan: Plan, data: st.DataObject) -> None:
    base, x = plan.build(), plan.example()
    norm = data.draw(st.sampled_from(policies_of(method)))
    adapted = attach_anything(copy.deepcopy(base), method, norm=norm, **data.draw(options_for(method)))
    assert torch.equal(adapted(x), base(x))
    counted("random networks in evaluation, over all methods")


@pytest.mark.parametrize("method", METHODS)
@given(plan=plans(), data=st.data())
def test_fresh_adapter_in_training_gives_the_base_with_its_norms_in_evaluation(
    method: str, plan: Plan, data: st.DataObject
) -> None:
    if "frozen" not in policies_of(method):
        pytest.skip("this method needs live norms")
    base, x = plan.build(), plan.example()
    options = data.draw(options_for(method))
    adapted = by_definition(attach_anything(copy.deepcopy(base), method, norm="frozen", **options)).train()
    base.train()
    for module in base.modules():
        if isinstance(module, _NormBase):
            module.eval()
    torch.manual_seed(3)
    expected = base(x)
    torch.manual_seed(3)
    assert torch.equal(adapted(x), expected)
    counted("random networks in training, over all methods")


def without_stride(block: Block) -> Block:
    """The same block in steps of one; what comes behind it gets more room than it needs."""
    ones = (1,) * len(block.geometry.kernel)
    return dataclasses.replace(block, geometry=dataclasses.replace(block.geometry, stride=ones))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@given(plan=plans(norms=("batch", "none")), method=st.sampled_from(METHODS))
def test_fresh_adapter_in_other_dtypes_gives_the_base_output(dtype: torch.dtype, plan: Plan, method: str) -> None:
    if dtype == torch.bfloat16:  # PyTorch's own strided and transposed ones give now one output, now another
        assume(not any(block.geometry.transposed for block in plan.blocks))
        plan = dataclasses.replace(plan, blocks=tuple(map(without_stride, plan.blocks)))
    base, x = plan.build(dtype), plan.example(dtype)
    expected = base(x)
    adapted = attach_anything(copy.deepcopy(base), method)
    assert torch.equal(adapted(x), expected)


@given(plan=plans(), method=st.sampled_from(METHODS), first=st.sampled_from(METHODS))
def test_fresh_adapter_on_top_of_another_gives_the_output_of_that_one(plan: Plan, method: str, first: str) -> None:
    model, x = plan.build(), plan.example()
    randomise(attach_anything(model, first, name="first"))
    expected = model(x)
    attach_anything(model, method, name="second")
    assert torch.equal(model(x), expected)


def test_no_activity_gives_the_base_whatever_the_adapter_holds() -> None:
    base = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    x = torch.randn(2, 3, 8, 8)
    adapted = randomise(convpeft.attach(copy.deepcopy(base), "lora", norm="train", num_classes=7))
    convpeft.set_active(adapted, [])
    assert torch.equal(adapted(x), base(x))
