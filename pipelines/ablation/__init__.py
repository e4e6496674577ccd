"""`bebygan ablate`: train the same network by several objectives and compare them on benchmarks."""
