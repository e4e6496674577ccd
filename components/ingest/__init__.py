"""Photographs in: decoded, measured, split, or quarantined, behind a gate."""
