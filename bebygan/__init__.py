"""Beby-GAN image super-resolution: networks, losses, metrics and training, on torch and numpy alone."""

SCALE = 4
"""How many times larger the generator makes an image, on each side."""
