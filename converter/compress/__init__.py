"""Makes models smaller before they are lowered: what is trained, and what it computes in eval mode."""
