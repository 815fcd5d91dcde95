"""Takes out of models what they can do without: whole channels, or single weights."""
