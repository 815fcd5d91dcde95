"""Phones: all that another device's own ferryman does is done from here, by the phone's shell and the native runner."""
