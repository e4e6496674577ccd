"""What is recorded of runs and models: MLflow, the ledger of promotions, provenance."""
