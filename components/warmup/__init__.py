"""Train or import the PSNR-oriented generator that Beby-GAN starts from."""
