"""Fast paths of the encoder, which it also runs without."""
