"""Small, faithful compute graphs that must convert to both runtimes. Weights are random unless a docstring says so."""
