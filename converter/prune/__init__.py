"""Smaller networks: channels, heads and branches that are gone, and weights that are zero."""
