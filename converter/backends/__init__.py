"""One folder or file a runtime."""
