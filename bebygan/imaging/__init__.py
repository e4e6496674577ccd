"""Images: MATLAB-exact bicubic, colour, decoding, shards and tiled upscaling."""
