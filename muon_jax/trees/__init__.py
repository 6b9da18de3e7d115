"""Paths of leaves, and patterns that match them."""
