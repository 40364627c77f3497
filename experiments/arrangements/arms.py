"""The arms by what they have in common; the names are those of the grids."""

from __future__ import annotations

HEAD, BIASES, WHOLE = "probe", "bitfit", "full"
LESS_CONV1, LESS_CONV2 = "parallel, group, less conv1", "parallel, group, less conv2"
PARALLEL = ("parallel, group", "parallel, group, scale")
SERIAL = ("serial, group", "serial, group, scale")
PARALLEL_COPY = ("parallel, copy", "parallel, copy, scale")
SERIAL_COPY = ("serial, copy", "serial, copy, scale")
SEPARATE = (*PARALLEL, *PARALLEL_COPY, *SERIAL, *SERIAL_COPY)  # a layer g of its own: every combination
SCALED = tuple(arm for arm in SEPARATE if arm.endswith("scale"))
UNSCALED = tuple(arm for arm in SEPARATE if not arm.endswith("scale"))
MATRIX, TENSORS = ("lora",), ("cp", "tucker", "cp-tucker")
ALTERED = (*MATRIX, *TENSORS)  # the weight W + dW
AT_BUDGET = (*PARALLEL, *SERIAL, *ALTERED)  # those that train as many parameters as can be

ABOUT = {
    HEAD: "a new head alone",
    BIASES: "b + db: the biases of the norms",
    "parallel, group": "f(z) + g(z), g a group convolution of three taps",
    "parallel, group, scale": "the same, times a learned scale",
    "parallel, copy": "f(z) + g(z), the filters of g copied until there are enough",
    "parallel, copy, scale": "the same, times a learned scale",
    "serial, group": "f(z) + g(f(z)), a filter of three taps for each channel",
    "serial, group, scale": "the same, times a learned scale",
    "serial, copy": "f(z) + g(f(z)), one filter copied to all channels",
    "serial, copy, scale": "the same, times a learned scale",
    "lora": "W + dW, dW a matrix of rank one, reshaped",
    "cp": "W + dW, dW a canonical polyadic sum (CPD)",
    "tucker": "W + dW, dW a Tucker-2 product (TKD)",
    "cp-tucker": "W + dW, TKD with a CPD of its core (CPD-TKD)",
    WHOLE: "everything, and the statistics of the norms",
    LESS_CONV1: "`parallel, group` without conv1 of the two blocks that halve the image",
    LESS_CONV2: "`parallel, group` without conv2 of these blocks",
}
# Stand for one of the two, by where a network has its stride.
STRIDED, BESIDE = "without the layer that has the stride", "without the layer beside it"
_STRIDE_IN_CONV2 = ("letters-v15",)


def arm_on(task: str, arm: str) -> str:
    """The arm of a transfer that a name stands for.

    >>> arm_on("letters-v1", STRIDED), arm_on("letters-v15", STRIDED), arm_on("letters-v15", "lora")
    ('parallel, group, less conv1', 'parallel, group, less conv2', 'lora')
    """
    if arm not in (STRIDED, BESIDE):
        return arm
    return LESS_CONV2 if (arm == STRIDED) == (task in _STRIDE_IN_CONV2) else LESS_CONV1
