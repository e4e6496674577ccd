"""Cut the photographs of a dataset into HR patches and their LR."""
