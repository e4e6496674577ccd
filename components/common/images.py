"""The two images that tasks run in. Read when a pipeline is compiled; a cluster names them by digest."""

import os

DATA_IMAGE = os.environ.get("BEBYGAN_DATA_IMAGE", "bebygan-data-python:latest")
"""Holds DVC, Great Expectations and boto3, no torch."""

TORCH_IMAGE = os.environ.get("BEBYGAN_TORCH_IMAGE", "bebygan-torch-python:latest")
"""Holds torch and MLflow."""
