"""GLoRA: scale and shift a layer's weight and bias by five supports, each low-rank, a vector, a number or absent."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from convpeft.adapters import Adapter, check_positive
from convpeft.sites import Site

Matrix = Literal["lora", "vector", "scalar", "none"]
Prompt = Literal["lora", "vector", "none"]
Vector = Literal["vector", "scalar", "none"]


class Glora(Adapter, name="glora"):
    r"""Scale and shift the weight and the bias of a layer, the weight by low-rank matrices.

    weight' = weight + weight * A + B,  bias' = bias + D * bias + E + weight C,  * elementwise
    (weight C)[o] = sum_ij weight[o, i, j] * C[i], i over the input channels of o's group, j over all kernel positions

    weight (out, in/groups, *kernel) frozen, seen as a matrix (out, n) with n = in/groups * prod(kernel)
    A, B `lora`: scale * up @ down, up (out, rank) zeros, down (rank, n) Xavier-uniform | `vector` (out, 1) zeros
    C `lora`: scale * up @ down, up (in, rank) zeros, down (rank, 1) Xavier-uniform     | `vector` (in, 1) zeros
    D, E `vector` (out) zeros | `scalar` (A, B, D, E) one zero | `none`: left out
    bias (out) frozen; where there is none it counts as zero, D is left out and C or E bring one into being

    weight C is what a constant input of C[i] in channel i adds to every output, wherever the kernel touches no padding.

    Args:
        rank: Width of the low-rank supports, >= 1. At most what keeps all supports as small as the weight (see
            rank_policy).
        alpha: Step size of the low-rank supports, > 0: scale = alpha / rank, with the rank asked for, also where it
            was clamped. Default: what makes the scale 1, so that changing the rank keeps the step size.
        a: Form of the factor on the weight.
        b: Form of the shift of the weight.
        c: Form of the constant input, whose output goes into the bias.
        d: Form of the factor on the bias.
        e: Form of the shift of the bias.

    Raises:
        OptionError: If rank or alpha is out of range.

    Source:
        Chavan et al., One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning, 2023, arXiv 2306.07967; A is
        a factor entry by entry, as in the released code. Differs: the parametrisation alone, with one form a support
        for all layers, not the paper's supernet and evolutionary search of a form for each layer; convolutions by the
        matrix (out, n), with C summed over the kernel.
    """

    paper: ClassVar[str] = "Chavan et al. 2023, arXiv 2306.07967"
    learning_rate: ClassVar[float] = 2e-3

    def __init__(
        self,
        site: Site,
        *,
        rank: int = 4,
        alpha: float | None = None,
        a: Matrix = "lora",
        b: Matrix = "lora",
        c: Prompt = "lora",
        d: Vector = "vector",
        e: Vector = "vector",
    ) -> None:
        super().__init__(site)
        check_positive("glora", rank=rank, alpha=1.0 if alpha is None else alpha)
        width = min(rank, self.largest_rank(site, a=a, b=b, c=c, d=d, e=e) or 0)
        self.scale = 1.0 if alpha is None else alpha / rank
        out, inputs = site.out_channels, site.groups * site.shape[1]
        self._add("a", a, out, site.fan_in, width)
        self._add("b", b, out, site.fan_in, width)
        self._add("c", c, inputs, 1, width)
        self.d = nn.Parameter(torch.empty(_length(d, out))) if site.bias and d != "none" else None
        self.e = nn.Parameter(torch.empty(_length(e, out))) if e != "none" else None

    def _add(self, letter: str, form: Matrix, rows: int, columns: int, width: int) -> None:
        """Make the parameters of one support: `a_up` and `a_down`, or `a` alone."""
        if form == "lora":
            self.register_parameter(f"{letter}_up", nn.Parameter(torch.empty(rows, width)))
            self.register_parameter(f"{letter}_down", nn.Parameter(torch.empty(width, columns)))
        elif form != "none":
            self.register_parameter(letter, nn.Parameter(torch.empty(_length(form, rows), 1)))

    @classmethod
    def largest_rank(cls, site: Site, **options: Any) -> int | None:
        """The largest rank at which all supports together hold no more numbers than the weight."""
        forms = {"a": "lora", "b": "lora", "c": "lora", "d": "vector", "e": "vector"} | options
        out, inputs = site.out_channels, site.groups * site.shape[1]
        each = sum(forms[letter] == "lora" for letter in "ab") * (out + site.fan_in)
        each += (inputs + 1) * (forms["c"] == "lora")
        if each == 0:
            return None
        sides = {"a": out, "b": out, "c": inputs, "d": out if site.bias else 0, "e": out}
        fixed = sum(min(sides[x], _length(forms[x], sides[x])) for x in "abcde" if forms[x] in ("vector", "scalar"))
        return max(0, (out * site.fan_in - fixed) // each)

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Draw the `down` factors, zero everything else."""
        for name, parameter in self.named_parameters():
            if name.endswith("_down"):
                nn.init.xavier_uniform_(parameter, generator=generator)
            else:
                nn.init.zeros_(parameter)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to (weight + weight * A + B, bias + D * bias + E + weight C)."""
        factor, shift = self._support("a"), self._parameters.get("b")
        up, down = self._parameters.get("b_up"), self._parameters.get("b_down")
        new = flat = weight.flatten(1)  # (out, n)
        if factor is not None:
            new = torch.addcmul(flat, flat, factor)
        if up is not None and down is not None:
            new = torch.addmm(new, up, down, alpha=self.scale)
        elif shift is not None:
            new = new + shift
        return new.view_as(weight), self._new_bias(weight, bias)

    def _new_bias(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        prompt = self._support("c")
        if bias is None and prompt is None and self.e is None:
            return None
        new = weight.new_zeros(weight.shape[0]) if bias is None else bias
        if self.d is not None and bias is not None:
            new = torch.addcmul(bias, bias, self.d)
        if self.e is not None:
            new = new + self.e
        if prompt is None:
            return new
        taps = weight.reshape(self.site.groups, -1, *weight.shape[1:2], weight[0, 0].numel()).sum(3)
        return new + torch.bmm(taps, prompt.view(self.site.groups, -1, 1)).flatten()  # (groups, out/groups, in/groups)

    def _support(self, letter: str) -> Tensor | None:
        """A or C as one matrix, or what spreads to one."""
        up, down = self._parameters.get(f"{letter}_up"), self._parameters.get(f"{letter}_down")
        return self._parameters.get(letter) if up is None or down is None else self.scale * up @ down


def _length(form: str, whole: int) -> int:
    return 1 if form == "scalar" else whole
