"""Sparkplug B beside ferryman's own topics, for hosts that speak it; the extra `sparkplug`."""
