"""Lowers PyTorch models to artifacts and proves them; the host's side, torch allowed."""
