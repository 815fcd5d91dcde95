"""Updates of weights on a wire: what a device sends of its training, and what a publisher sends less exactly."""
