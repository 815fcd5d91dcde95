"""One file an interpreter."""
