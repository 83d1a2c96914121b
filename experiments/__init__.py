"""Experiments with the library, which does not depend on them."""
