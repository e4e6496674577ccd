"""Preflight: what a run will need is tried before anything expensive starts."""
