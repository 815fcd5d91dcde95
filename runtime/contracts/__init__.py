"""Frozen, versioned records and the error tree."""
