"""Beby-GAN image super-resolution: networks, losses, metrics and training, on torch and numpy alone."""
