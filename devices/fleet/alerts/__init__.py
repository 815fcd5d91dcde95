"""Alerts: which devices need somebody, decided from the store, and told to whoever is to know."""
