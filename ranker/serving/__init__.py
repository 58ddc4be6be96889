"""Serving: what leaves the package, without the trainer."""
