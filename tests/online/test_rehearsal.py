"""Simulated users choose between runs."""

import numpy as np

from ranker.online import rehearsal


def _runs():
    r = np.random.default_rng(0)
    grades = {
        f"q{q}": {f"d{d}": int(g) for d, g in enumerate(r.integers(0, 5, 12))}
        for q in range(30)
    }

    def noisy(noise):
        return {
            q: {d: g + noise * r.normal() for d, g in found.items()}
            for q, found in grades.items()
        }

    return grades, {"good": noisy(0.3), "fair": noisy(1.5), "poor": noisy(9.0)}


def test_users_prefer_what_is_judged_better_and_it_says_that_it_is_made_up():
    grades, runs = _runs()
    found = rehearsal.interleave(runs, grades, users=400)
    pairs = {(one["a"], one["b"]): one for one in found["pairs"]}
    assert pairs["good", "poor"]["preferred"] == "good"
    assert pairs["fair", "poor"]["preferred"] == "fair"
    assert pairs["fair", "good"]["delta"] < 0
    assert found["users"] == 400 and found["notes"][0].startswith("simulated:")
    assert found == rehearsal.interleave(runs, grades, users=400)


def test_equal_systems_are_not_told_apart():
    grades, runs = _runs()
    found = rehearsal.interleave(
        {"one": runs["fair"], "same": runs["fair"]}, grades, users=400
    )
    [pair] = found["pairs"]
    assert pair["preferred"] is None and pair["p_value"] > 0.01
