"""The losses of Beby-GAN: pure functions of tensors."""
