"""Measures a session: latency, memory, energy, conditions."""
