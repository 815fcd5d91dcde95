"""Both sides of the link between host and device."""
