"""What runs on the device: packages, slots and interpreters; never torch."""
