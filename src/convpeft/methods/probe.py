"""Linear probe: train the classifier alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from convpeft.adapters import Adapter, NormPolicy
from convpeft.methods.full import Full
from convpeft.sites import Kind


class Probe(Full, name="probe"):
    r"""Train the head only: a fresh one for new classes, else a copy of the old one.

    weight' = own weight, bias' = own bias, at the head alone

    Source:
        Linear probing of a frozen network, the "feature extractor" row of Rebuffi et al. 2017, arXiv 1705.08045.
    """

    paper: ClassVar[str] = "the baseline"
    refused: ClassVar[Mapping[Kind, str]] = Adapter.refused
    kinds: ClassVar[tuple[Kind, ...]] = ("conv", "linear")
    default_sites: ClassVar[tuple[str, ...]] = ("head",)
    norm_policies: ClassVar[tuple[NormPolicy, ...]] = ("frozen", "adapt", "train")
    learning_rate: ClassVar[float] = 5e-3
