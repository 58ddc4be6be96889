"""Pairwise."""


def ranknet(scores, labels, *, where): ...


def hinge(scores, labels, *, where, margin=1.0): ...
