"""Bridges to other tools; this package can be imported without any of them."""
