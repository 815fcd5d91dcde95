"""Single weights set to zero, how they are chosen and trained around, and networks made for them."""
