"""Losses: pure functions of scores that return a total and a weight, never a mean.

`reduction` holds what they return, `lists` the masks, pairs and ranks they are made of.
"""
