"""The pipeline on Kubeflow: compiled, submitted, scheduled, and what its tasks are given."""
