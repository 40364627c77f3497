"""Decompositions of convolution kernels, and the thin convolutions that stand for them."""

from convpeft.decompositions.correction import corrected
from convpeft.decompositions.cpd import cpd, reconstruct
from convpeft.decompositions.forms import METHODS, Decomposed, Thin, decompose, size_of
from convpeft.decompositions.replacing import replace_layer, thin_layers
from convpeft.decompositions.sensitivity import balanced, sensitivity, term_norms
from convpeft.decompositions.tucker import tucker

__all__ = [
    "METHODS",
    "Decomposed",
    "Thin",
    "balanced",
    "corrected",
    "cpd",
    "decompose",
    "reconstruct",
    "replace_layer",
    "sensitivity",
    "size_of",
    "term_norms",
    "thin_layers",
    "tucker",
]
