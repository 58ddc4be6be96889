"""Ranking losses: pure functions that return a total and its weight."""
