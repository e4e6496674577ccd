"""Make a dataset of photographs and validate it."""
