"""What the steps have in common: configuration, command line, storage, tracking, provenance, weights."""
