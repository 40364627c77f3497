"""Normalisation layers in numpy, in float64, as they are in evaluation."""

import numpy as np


def batch_norm(
    x: np.ndarray, mean: np.ndarray, variance: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float
) -> np.ndarray:
    """`x (batch, channels, *space)` by running statistics."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    mean, variance, weight, bias = (a.astype(np.float64).reshape(shape) for a in (mean, variance, weight, bias))
    return (x.astype(np.float64) - mean) / np.sqrt(variance + eps) * weight + bias


def group_norm(x: np.ndarray, groups: int, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """`x (batch, channels, *space)`, each group of channels by its own mean and variance."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    rows = x.astype(np.float64).reshape(x.shape[0], groups, -1)
    rows = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + eps)
    return rows.reshape(x.shape) * weight.astype(np.float64).reshape(shape) + bias.astype(np.float64).reshape(shape)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, eps: float) -> np.ndarray:
    """`x (..., *weight.shape)`, each by the mean and variance of its last axes."""
    axes = tuple(range(x.ndim - weight.ndim, x.ndim))
    x = x.astype(np.float64)
    out = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps) * weight.astype(np.float64)
    return out if bias is None else out + bias.astype(np.float64)
