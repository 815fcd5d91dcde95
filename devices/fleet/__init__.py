"""The host's side: inventory, push, collector, store."""
