"""Ranking metrics, tests of significance, and agreement of two scorers."""
