"""How a model is computed while it is trained: what was asked for, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

KERNELS = ("auto", "weight", "rebuilt", "side", "hybrid", "lean", "fused")
LAYOUTS = ("auto", "contiguous", "channels_last")


@dataclass(frozen=True)
class KernelPlan:
    """What the last forward in training chose.

    Args:
        kernel: Kernel that was asked for, or `auto`.
        layout: Layout of the images inside the network, `contiguous` or `channels_last`; `auto` before any forward.
        fold: Whether frozen norms may be folded.
        sites: Kernel of each adapted layer that has run, by path.
        folded: Path of the norm that was folded into a convolution, by the convolution's path.
        unfolded: Why a convolution keeps its norm, by the convolution's path.
    """

    kernel: str
    layout: str
    fold: bool
    sites: Mapping[str, str]
    folded: Mapping[str, str]
    unfolded: Mapping[str, str]

    def as_request(self) -> dict[str, Any]:
        """Arguments of `set_kernels` that choose the same again."""
        return {"kernel": self.kernel, "layout": self.layout, "fold": self.fold, "sites": dict(self.sites)}

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values, for a file."""
        return asdict(self)


@dataclass
class Computing:
    """What was asked for, shared by the layers of a model, and what they did last."""

    kernel: str = "auto"
    layout: str = "auto"
    fold: bool = True
    forced: dict[str, str] = field(default_factory=dict[str, str])  # kernel of single layers
    looked: bool = False  # whether the model was looked at; what follows was found then or in a forward
    used: str | None = None  # layout
    kept: dict[str, str] = field(default_factory=dict[str, str])  # why a convolution keeps its norm
    stays: str | None = None  # why the layout has to stay as it is
    taken: dict[str, str] = field(default_factory=dict[str, str])  # kernel by path
    folded: dict[str, str] = field(default_factory=dict[str, str])  # norm by convolution
    unfolded: dict[str, str] = field(default_factory=dict[str, str])  # why not, by convolution
    pools: bool = False  # whether there is any max-pooling
    lean: bool = False  # whether no adapted layer keeps its input, so that activations may be kept as masks

    def note(self, path: str, kernel: str, *, norm: str | None, why: str | None) -> None:
        """Note how a layer ran: its kernel, and the norm whose work it did or why it did not."""
        self.taken[path] = kernel
        for found, value in ((self.folded, norm), (self.unfolded, why)):
            if value is None:
                found.pop(path, None)
            else:
                found[path] = value

    def look_again(self) -> None:
        """Forget what was found of the model; something was attached, detached, activated or asked for."""
        self.looked, self.used, self.stays, self.lean = False, None, None, False
        for found in (self.kept, self.taken, self.folded, self.unfolded):
            found.clear()
