"""The networks in Flax, and sampling from a language model."""
