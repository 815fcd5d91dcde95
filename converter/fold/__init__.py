"""Networks of fewer and of shared blocks (FoldGPT), and of merged layers (VanillaNet): weights once, layers once."""
