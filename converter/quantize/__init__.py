"""Fewer bits: recipes, what activations range over, rounded weights, and the program rewritten with them."""
