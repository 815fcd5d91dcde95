"""Pruned float weights without their zeros: which layers gain by it, and what becomes of the program."""
