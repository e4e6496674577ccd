"""What the project claims about itself, measured: `python -m benchmarks.bench`."""
