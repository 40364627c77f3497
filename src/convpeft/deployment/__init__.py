"""Deployment: a trained network as a file that runs without convpeft, checked against PyTorch before it is left."""

from convpeft.deployment.onnx_base import export_base
from convpeft.deployment.onnx_file import load_onnx
from convpeft.deployment.onnx_merged import export_onnx

__all__ = ["export_base", "export_onnx", "load_onnx"]
