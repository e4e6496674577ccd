"""Train: Beby-GAN from the warm-up generator."""
