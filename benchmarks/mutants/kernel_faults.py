"""Faults of the cheaper kernels: another function than the definition, or taken where it must not be."""

from __future__ import annotations

from mutants.fault import Fault

_KERNELS = "tests/kernels/test_kernels.py"
_DEFINITION = f"{_KERNELS}::test_kernel_of_a_convolution_is_the_definition[lora-hybrid]"

FAULTS = (
    Fault(
        name="update left out of the gradient of the input",
        promises=("C10",),
        file="kernels/hybrid.py",
        before="operation.input_gradient(grad, x, effective_weight(weight, up, down, x))",
        after="operation.input_gradient(grad, x, weight)",
        tests=(_DEFINITION,),
    ),
    Fault(
        name="both factors given the gradient of the whole product",
        promises=("C10",),
        file="kernels/hybrid.py",
        before="inner = operation.mix(grad, up.T.to(x.dtype))",
        after="inner = operation.mix(grad, torch.ones_like(up).T.to(x.dtype))",
        tests=(_DEFINITION,),
    ),
    Fault(
        name="padding mode taken for zeros by the cheaper kernel",
        promises=("C02",),
        file="kernels/running.py",
        before='mode="constant" if site.padding_mode == "zeros" else site.padding_mode',
        after='mode="constant"',
        tests=(_DEFINITION,),
    ),
    Fault(
        name="cheaper kernel taken in evaluation",
        promises=("C02",),
        file="injection.py",
        before="if self.training and torch.is_grad_enabled() else None",
        after="if torch.is_grad_enabled() else None",
        tests=(f"{_KERNELS}::test_definition_is_kept_where_something_else_is_asked_of_a_layer",),
    ),
    Fault(
        name="cheaper kernel taken for the first of two adapters",
        promises=("C09",),
        file="injection.py",
        before='if len(parts) != 1 or parts[0].site.tensor != "weight":',
        after='if not parts or parts[0].site.tensor != "weight":',
        tests=(f"{_KERNELS}::test_definition_is_kept_where_something_else_is_asked_of_a_layer",),
    ),
    Fault(
        name="map of a subclass taken for that of its parent",
        promises=("C02",),
        file="low_rank.py",
        before='cls.is_product = "factors" in cls.__dict__',
        after="cls.is_product = True",
        tests=(f"{_KERNELS}::test_subclass_with_a_map_of_its_own_keeps_the_definition",),
    ),
    Fault(
        name="gradient of a trained weight lost",
        promises=("C10",),
        file="kernels/running.py",
        before="if weight.requires_grad or _is_traced(x):",
        after="if _is_traced(x):",
        tests=(f"{_KERNELS}::test_definition_is_kept_where_something_else_is_asked_of_a_layer",),
    ),
    Fault(
        name="weight built in half precision by the cheaper kernel",
        promises=("C02",),
        file="kernels/hybrid.py",
        before="    wide = weight.to(up.dtype)\n",
        after="    wide, up, down = weight.to(like.dtype), up.to(like.dtype), down.to(like.dtype)\n",
        tests=(f"{_KERNELS}::test_half_precision_model_is_trained_with_float32_factors",),
    ),
)
