"""Images of the tasks on this machine's container engine. For a cluster, infra/cluster.yaml names them."""

import os

DATA_IMAGE = os.environ.get("BEBYGAN_DATA_IMAGE", "bebygan-data-python:latest")
"""Holds DVC, Great Expectations and boto3, no torch."""

TORCH_IMAGE = os.environ.get("BEBYGAN_TORCH_IMAGE", "bebygan-torch-python:latest")
"""Holds torch and MLflow."""
