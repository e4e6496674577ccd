"""Notify: end a pipeline's run in MLflow, and post the result to a webhook."""
