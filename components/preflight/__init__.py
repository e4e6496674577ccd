"""Preflight: test everything that a run needs before anything expensive starts."""
