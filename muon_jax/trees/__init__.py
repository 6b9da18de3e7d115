"""Paths of leaves, and patterns that choose them."""
