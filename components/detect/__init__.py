"""Detect: whether photographs, code or parameters changed since the champion was made."""
