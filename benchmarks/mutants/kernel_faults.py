"""Faults of the cheaper kernels: another function than the definition, or taken where it must not be."""

from __future__ import annotations

from mutants.fault import Fault

_KERNELS = "tests/kernels/test_kernels.py"
_FOLDING, _LESS = "tests/test_folding.py", "tests/kernels/test_keeping_less.py"
_DEFINITION = f"{_KERNELS}::test_kernel_of_a_convolution_is_the_definition[lora-hybrid]"

FAULTS = (
    Fault(
        name="update left out of the gradient of the input",
        promises=("C10",),
        file="kernels/hybrid.py",
        before="grad_x = operation.input_gradient(grad, x, whole)",
        after="grad_x = operation.input_gradient(grad, x, weight.to(x.dtype))",
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
        name="scale of a folded norm left out of the gradients of the factors",
        promises=("C10",),
        file="kernels/fused.py",
        before="flat = flat * scale.to(up.dtype).unsqueeze(1)",
        after="flat = flat * torch.ones_like(scale).unsqueeze(1)",
        tests=("tests/test_folding.py::test_every_kernel_folds_the_same[lora-fused-contiguous]",),
    ),
    Fault(
        name="kept weight taken for a constant in a second derivative",
        promises=("C10",),
        file="kernels/fused.py",
        before="if torch.is_grad_enabled():  # a derivative of this derivative is wanted, and the weight has one",
        after="if False:",
        tests=(f"{_KERNELS}::test_second_derivatives_are_right[fused]",),
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
        before="if self.training and torch.is_grad_enabled() and not is_traced(args[0]):",
        after="if torch.is_grad_enabled() and not is_traced(args[0]):",
        tests=(f"{_KERNELS}::test_definition_is_kept_where_something_else_is_asked_of_a_layer",),
    ),
    Fault(
        name="cheaper kernel taken for the first of two adapters",
        promises=("C09",),
        file="injection.py",
        before='alone = len(parts) == 1 and parts[0].site.tensor == "weight"',
        after='alone = bool(parts) and parts[0].site.tensor == "weight"',
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
        before="if weight.requires_grad or not _fits(part.site, x):",
        after="if not _fits(part.site, x):",
        tests=(f"{_KERNELS}::test_definition_is_kept_where_something_else_is_asked_of_a_layer",),
    ),
    Fault(
        name="weight built in half precision by the cheaper kernel",
        promises=("C02",),
        file="kernels/weights.py",
        before="dtype=up.dtype, device=weight.device)\n",
        after="dtype=like.dtype, device=weight.device)\n    up, factor = up.to(like.dtype), factor.to(like.dtype)\n",
        tests=(f"{_KERNELS}::test_half_precision_model_is_trained_with_float32_factors",),
    ),
    Fault(
        name="update not scaled with the filter that a norm is folded into",
        promises=("C02",),
        file="kernels/running.py",
        before="up = up * scale.to(up.dtype).unsqueeze(1)",
        after="up = up * 1",
        tests=(f"{_FOLDING}::test_every_kernel_folds_the_same",),
    ),
    Fault(
        name="convolution folded although something else reads its output",
        promises=("C02",),
        file="tracing.py",
        before="    if len(users) != 1:\n",
        after="    if len(users) < 1:\n",
        tests=(f"{_FOLDING}::test_folded_network_is_the_same_function",),
    ),
    Fault(
        name="live norm folded by its running statistics",
        promises=("C04",),
        file="folding.py",
        before="if statistics is not None and statistics[0] == slots.state.training:",
        after="if statistics is not None and statistics[0] != slots.state.training:",
        tests=(f"{_FOLDING}::test_norm_is_kept_where_folding_would_show",),
    ),
    Fault(
        name="layer called by itself gives folded numbers",
        promises=("C02",),
        file="folding.py",
        before="if slots.norm is None or not frames or not frames[-1].active or",
        after="if slots.norm is None or",
        tests=(f"{_FOLDING}::test_layer_that_is_called_by_itself_is_not_folded",),
    ),
    Fault(
        name="folded norm that never runs goes unnoticed",
        promises=("C02",),
        file="folding.py",
        before="if finished and frame.waiting:",
        after="if False:",
        tests=(f"{_FOLDING}::test_norm_that_is_replaced_later_is_noticed",),
    ),
    Fault(
        name="ceiling of ReLU6 forgotten in its mask",
        promises=("C10",),
        file="kernels/masks.py",
        before="passed = x > 0 if ceiling is None else (x > 0) & (x < ceiling)",
        after="passed = x > 0",
        tests=(f"{_LESS}::test_masked_relu_is_torchs_and_keeps_a_byte_a_number",),
    ),
    Fault(
        name="lean kernel leaves the update out of the gradient of the input",
        promises=("C10",),
        file="kernels/lean.py",
        before="operation.input_gradient(grad, like, effective_weight(weight, up, down, scale, like))",
        after="operation.input_gradient(grad, like, weight.to(like.dtype))",
        tests=(f"{_LESS}::test_lean_network_is_the_definition_and_keeps_a_fraction",),
    ),
)
