"""The retraining pipeline: its graph, running it here and on a cluster, and the `bebygan` command."""
