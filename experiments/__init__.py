"""Experiments with the library; nothing in it depends on them."""
