"""Start: let Kubeflow run the retraining pipeline."""
