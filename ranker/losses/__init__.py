"""Losses: pure functions of scores that return a total and a weight, never a mean."""
