"""Generator, discriminator and the frozen perceptual networks."""
