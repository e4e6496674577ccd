"""Notify: end a pipeline's run in the tracker, and tell those who want to know."""
