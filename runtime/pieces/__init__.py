"""Payloads in pieces: how each is stored and made again, from nothing or from bytes the device has."""
