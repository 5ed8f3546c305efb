"""Encoders, heads and the models composed of them."""
