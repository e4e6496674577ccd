"""Warm-up: the PSNR-oriented generator that Beby-GAN starts from."""
