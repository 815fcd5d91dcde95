"""What devices are and have: asked over every way that reaches them, kept, and what follows from it."""
