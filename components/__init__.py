"""The steps of the retraining pipeline: ingest, patches, warmup, train, evaluate, register."""
