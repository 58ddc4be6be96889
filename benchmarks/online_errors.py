"""How often the online tests are wrong, and how often they find what is there.

python benchmarks/online_errors.py [--runs 2000] [--users 1500]

Users are made up: log-normal activity, click rates that go along with it, half of them
in each arm. Type I error of every estimator, of always-valid p-values looked at 100
times, of a test by pages (which nobody should use), and the forecast of `power` against
what is found.
"""

import argparse
import json
import math

import numpy as np
from scipy import stats

from ranker.online import estimates, planning, preference, simulate
from ranker.online.estimates import Moments


def _parts(values: np.ndarray, arm: np.ndarray) -> tuple[Moments, Moments]:
    return Moments.of(values[arm == 0]), Moments.of(values[arm == 1])


def _by_pages(values: np.ndarray, arm: np.ndarray) -> float:
    clicks, pages = (
        np.array([values[arm == one, column].sum() for one in (0, 1)])
        for column in (0, 1)
    )
    rate = clicks.sum() / pages.sum()
    error = math.sqrt(rate * (1 - rate) * (1 / pages).sum())
    return float(2 * stats.norm.sf(abs(np.diff(clicks / pages)[0]) / error))


def _estimators(values: np.ndarray, arm: np.ndarray, generator) -> dict[str, float]:
    """P-values of one A/A test."""
    ones = np.ones(len(values))
    user = np.stack([values[:, 0] > 0, ones, values[:, 2] > 0, ones], axis=1)
    # Heavy-tailed dwell of each click, capped, with a user's own level.
    clicks = values[:, 0].astype(int)
    level = generator.normal(0, 0.5, len(values))
    stays = np.exp(
        3 + np.repeat(level, clicks) + 1.5 * generator.standard_normal(clicks.sum())
    )
    owner = np.repeat(np.arange(len(values)), clicks)
    dwell = np.bincount(owner, np.minimum(stays, 600), len(values))
    stay = np.stack([dwell, values[:, 0], 0 * ones, 0 * ones], axis=1)
    wins = generator.binomial(clicks, generator.beta(2, 2, len(values)))
    p = {
        "PageCTR": estimates.compare_arms(*_parts(values, arm)).p_value,
        "PageCTR, CUPED": estimates.compare_arms(
            *_parts(values, arm), cuped=True
        ).p_value,
        "UserCTR": estimates.compare_arms(*_parts(user, arm)).p_value,
        "UserCTR, CUPED": estimates.compare_arms(
            *_parts(user, arm), cuped=True
        ).p_value,
        "dwell": estimates.compare_arms(*_parts(stay, arm)).p_value,
        "pages a user": estimates.compare_arms(
            *_parts(np.stack([values[:, 1], ones, values[:, 3], ones], axis=1), arm)
        ).p_value,
        "interleaving": preference.prefer(wins, clicks - wins, 0 * wins).p_value,
        "by pages (do not)": _by_pages(values, arm),
    }
    low, high = estimates.compare_arms(*_parts(values, arm)).lift_interval
    p["lift interval leaves out 0"] = 0.0 if low > 0 or high < 0 else 1.0
    return p


def _peeks(values: np.ndarray, arm: np.ndarray, looks: int) -> tuple[float, float]:
    """The smallest always-valid p, and the smallest plain one, over all looks."""
    total, running = len(values), []
    for n in np.linspace(200, total, looks).astype(int):
        one = estimates.compare_arms(*_parts(values[:n], arm[:n]))
        p, _ = estimates.always_valid(
            one.difference, one.standard_error, int(n), planned=5000
        )
        running.append((p, one.p_value))
    lowest = np.min(running, axis=0)
    return float(lowest[0]), float(lowest[1])


def _power(runs: int, users: int) -> dict[str, dict[str, float]]:
    crowd = simulate.Crowd(users=100_000, before=0.8)
    values, _ = simulate.draw_users(crowd, np.random.default_rng(10**6))
    whole, found = Moments.of(values), {}
    for lift in (0.03, 0.06):
        for cuped in (False, True):
            hits = 0
            for seed in range(runs):
                one = simulate.Crowd(users=users, before=0.8, lift=lift)
                drawn, arm = simulate.draw_users(one, np.random.default_rng(seed))
                effect = estimates.compare_arms(*_parts(drawn, arm), cuped=cuped)
                hits += effect.p_value < 0.05
            said = planning.power(whole, lift, users, level=0.95, cuped=cuped)
            found[f"+{lift:.0%}{', CUPED' if cuped else ''}"] = {
                "forecast": round(said, 3),
                "found": round(hits / runs, 3),
            }
    return found


def main() -> None:
    """Prints everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--looks", type=int, default=100)
    given = parser.parse_args()
    counts: dict[str, int] = {}
    valid = plain = 0
    for seed in range(given.runs):
        generator = np.random.default_rng(seed)
        crowd = simulate.Crowd(users=given.users, before=0.8)
        values, arm = simulate.draw_users(crowd, generator)
        for name, p in _estimators(values, arm, generator).items():
            counts[name] = counts.get(name, 0) + (p < 0.05)
        if seed % 4 == 0:  # a hundred looks cost as much as a hundred tests
            lowest = _peeks(values, arm, given.looks)
            valid, plain = valid + (lowest[0] < 0.05), plain + (lowest[1] < 0.05)
    peeked = -(-given.runs // 4)
    print(
        json.dumps(
            {
                "runs": given.runs,
                "users": given.users,
                "type_I": {n: round(c / given.runs, 4) for n, c in counts.items()},
                f"always valid, {given.looks} looks": valid / peeked,
                f"plain p, {given.looks} looks": plain / peeked,
                "peeking_runs": peeked,
                "power": _power(given.runs // 2, given.users),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
