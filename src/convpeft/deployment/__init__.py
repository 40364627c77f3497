"""Deployment: a trained network as a file that runs without convpeft, checked against PyTorch before it is left."""

from convpeft.deployment.onnx_base import export_base

__all__ = ["export_base"]
