"""Rollouts: which devices should run what, ring by ring."""
