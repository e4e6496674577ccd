"""Patches: HR windows and their LR out of the photographs of a dataset."""
