"""Compression: thin convolutions in the place of thick ones, as thin as an allowed drop in accuracy lets them be."""

from convpeft.compression.compressing import Compression, Compressor, compress
from convpeft.compression.counting import multiplications
from convpeft.compression.searching import Layer, smallest

__all__ = ["Compression", "Compressor", "Layer", "compress", "multiplications", "smallest"]
