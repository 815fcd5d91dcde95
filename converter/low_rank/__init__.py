"""Layers as products of thinner ones: decomposed, trained to be so, or designed so."""
