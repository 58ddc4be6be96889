"""Distil a large language model's ranking skill into a BERT that is cheap to serve."""

__version__ = "0.1.0"
