"""`power` and `aa`: how long a test must run, and whether its tests can be trusted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from ranker.errors import ConfigError, DataError
from ranker.online import estimates, measures, pages
from ranker.online.estimates import Moments
from ranker.online.events import Log
from ranker.online.measures import MEASURES
from ranker.online.pages import Contradictions, PageRules, View

FIELDS = pages.FIELDS
_CHUNK = 2**22  # signs drawn at a time


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `power` and `aa` are asked for."""

    lifts: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05)  # relative
    power: float = 0.8
    level: float = 0.95
    before: float | None = None
    measure: str = "PageCTR"
    users: int | None = None  # in both arms: forecast the power at so many
    share: float = 1.0  # of the traffic that takes part
    splits: int = 1000  # of aa
    most_users: int = 200_000  # that aa draws on
    seed: int = 0
    rules: PageRules = field(default_factory=PageRules)

    def __post_init__(self):
        if not all(lift > -1 and lift != 0 for lift in self.lifts):
            raise ConfigError(f"--lift {self.lifts}: expected relative lifts, not 0")
        if not 0 < self.power < 1:
            raise ConfigError(f"--power {self.power}: expected above 0 and below 1")
        if not 0 < self.share <= 1:
            raise ConfigError(f"--share {self.share}: expected above 0, at most 1")
        if self.splits < 1:
            raise ConfigError(f"--splits {self.splits}: expected 1 or more")


# --- power ---


def spread(one: Moments, *, cuped: bool) -> float:
    """Variance of a user's share of the ratio, after CUPED where asked for."""
    theta = estimates.slope(one) if cuped else 0.0
    return estimates.arm_ratio(one, theta=theta).variance * one.n


def power(one: Moments, lift: float, users: int, *, level: float, cuped: bool) -> float:
    """Chance that a two-sided test of `users`, half an arm, finds a relative lift.

    >>> values = np.random.default_rng(0).poisson(3.0, (5000, 4)) + 1.0
    >>> round(power(Moments.of(values), 0.0, 1000, level=0.95, cuped=False), 3)
    0.05
    """
    effect = abs(lift) * estimates.arm_ratio(one).value
    error = math.sqrt(4 * spread(one, cuped=cuped) / users)
    quantile = float(stats.norm.ppf((1 + level) / 2))
    if not error > 0:
        return math.nan
    shift = effect / error
    return float(stats.norm.sf(quantile - shift) + stats.norm.cdf(-quantile - shift))


def users_for(
    one: Moments, lift: float, *, power: float, level: float, cuped: bool
) -> int:
    """Users in both arms together that a relative lift needs."""
    effect = abs(lift) * estimates.arm_ratio(one).value
    quantiles = float(stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power))
    if not effect > 0:
        return 0
    return math.ceil(4 * spread(one, cuped=cuped) * (quantiles / effect) ** 2)


def forecast(log: Log, settings: Settings) -> dict[str, Any]:
    """The report of `power`, for JSON.

    Raises:
      DataError: for a log with fewer than 2 users.
    """
    name = measures.check_primary(settings.measure, log)
    found = _make_users(log, settings)
    whole = _whole(log, [name])[name]
    cuped = whole.mean[estimates.BEFORE_DENOMINATOR] > 0
    arrivals = _arrivals(log, settings.share)
    rows = []
    for lift in settings.lifts:
        row: dict[str, Any] = {"lift": lift}
        for key, with_cuped in (("plain", False), ("cuped", True)):
            if with_cuped and not cuped:
                continue
            users = users_for(
                whole,
                lift,
                power=settings.power,
                level=settings.level,
                cuped=with_cuped,
            )
            row[key] = {"users": users, "days": _days(users, arrivals)}
            if settings.users:
                row[key]["power"] = power(
                    whole, lift, settings.users, level=settings.level, cuped=with_cuped
                )
        rows.append(row)
    notes = [
        "the forecast takes users of the test to be like those of this log, seen for "
        f"as long ({len(arrivals)} days); users seen longer have more pages, and the "
        "variance falls"
    ]
    if not cuped:
        notes.append("no pre-period (--before): CUPED's users are not forecast")
    return {
        "command": "power",
        "log": dict(log.facts),
        "contradictions": found.summary(),
        "measure": name,
        "what": MEASURES[name].what,
        "value": estimates.arm_ratio(whole).value,
        "users": whole.n,
        "users_by_day": arrivals,
        "power": settings.power,
        "level": settings.level,
        "asked_users": settings.users,
        "rows": rows,
        "notes": notes,
    }


def _make_users(log: Log, settings: Settings) -> Contradictions:
    found = Contradictions()
    view = View(before=settings.before)
    measures.make_users(log, settings.rules, found, view)
    row = log.connection.execute("SELECT count(*) FROM users").fetchone()
    assert row
    if row[0] < 2:
        raise DataError(
            f"{log.facts['files'][0]}: {row[0]} users remain after leaving out what "
            "contradicts itself; at least 2 are needed (and far more to say anything)"
        )
    return found


def _whole(log: Log, names: Sequence[str]) -> Mapping[str, Moments]:
    """Moments of all users, arms or none."""
    return {
        name: measures.of_measure(log.connection, name, by="'all'")["all"]
        for name in names
    }


def _arrivals(log: Log, share: float) -> list[int]:
    """Users seen until the end of each day."""
    rows = log.connection.execute(
        "SELECT first_day, count(*) FROM users GROUP BY first_day ORDER BY first_day"
    ).fetchall()
    days = range(rows[0][0], max(int(log.facts["last"] // 86400), rows[-1][0]) + 1)
    new = dict(rows)
    return np.cumsum([new.get(day, 0) * share for day in days]).astype(int).tolist()


def _days(users: int, arrivals: Sequence[int]) -> int | None:
    """Days until so many users have come; beyond the log at its last days' rate."""
    for day, seen in enumerate(arrivals, 1):
        if seen >= users:
            return day
    late = max(1, len(arrivals) // 3)
    start = arrivals[-late - 1] if len(arrivals) > late else 0
    rate = (arrivals[-1] - start) / late
    if rate <= 0:
        return None
    return len(arrivals) + math.ceil((users - arrivals[-1]) / rate)


# --- aa ---


def resplit(
    numerator: Float[np.ndarray, " n"],
    denominator: Float[np.ndarray, " n"],
    *,
    splits: int,
    seed: int,
) -> Float[np.ndarray, " splits"]:
    """P-values of the user-level test over random halvings of the users.

    Args:
      numerator: of each user.
      denominator: of each user.
      splits: how many.
      seed: of them.
    """
    n = len(numerator)
    x = np.stack(
        [
            np.ones(n),
            numerator,
            denominator,
            numerator**2,
            denominator**2,
            numerator * denominator,
        ],
        axis=1,
    )
    whole = x.sum(0)
    generator = np.random.default_rng(seed)
    found = []
    for first in range(0, splits, step := max(1, _CHUNK // n)):
        count = min(step, splits - first)
        bits = generator.integers(0, 2, (count, n), np.int8).astype(np.float64)
        a = bits @ x
        found.append(_p_values(a, whole - a))
    return np.concatenate(found)


def _p_values(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Welch's t-test of two samples' ratios, from [splits, 6] sums."""
    values, variances, sizes = [], [], []
    for n, num, den, num2, den2, both in (a.T, b.T):
        ratio = num / den
        centred = num2 - 2 * ratio * both + ratio**2 * den2  # its mean is 0
        variances.append(centred / (n - 1) * n / den**2)
        values.append(ratio)
        sizes.append(n)
    total = variances[0] + variances[1]
    freedom = total**2 / sum(
        v**2 / (n - 1) for v, n in zip(variances, sizes, strict=True)
    )
    t = np.abs(values[1] - values[0]) / np.sqrt(total)
    return 2 * stats.t.sf(t, freedom)


def aa_report(log: Log, settings: Settings) -> dict[str, Any]:
    """The report of `aa`, for JSON: false positives of each measure on this log."""
    found = _make_users(log, settings)
    names = measures.available(log)
    columns = sorted(
        {MEASURES[n].numerator for n in names}
        | {MEASURES[n].denominator for n in names}
    )
    sampled = log.connection.execute(
        f"SELECT {', '.join(columns)} FROM users ORDER BY hash(u) "
        f"LIMIT {settings.most_users}"
    ).fetchnumpy()
    users = len(next(iter(sampled.values())))
    alpha = 1 - settings.level
    # Where the truth is alpha, this is how far a count of so many splits strays.
    low, high = stats.binom.interval(0.99, settings.splits, alpha)
    rows: dict[str, Any] = {}
    for name in names:
        one = MEASURES[name]
        num, den = (
            np.ma.filled(sampled[c], 0.0).astype(np.float64)
            for c in (one.numerator, one.denominator)
        )
        if den.sum() <= 0 or np.ptp(num - den * (num.sum() / den.sum())) == 0:
            continue
        p_values = resplit(num, den, splits=settings.splits, seed=settings.seed)
        p_values = p_values[np.isfinite(p_values)]
        false = int((p_values < alpha).sum())
        rows[name] = {
            "false_positives": false / max(len(p_values), 1),
            "ok": bool(low <= false <= high),
            "uniform_p_value": float(stats.kstest(p_values, "uniform").pvalue),
            "histogram": np.histogram(p_values, bins=20, range=(0, 1))[0].tolist(),
        }
    return {
        "command": "aa",
        "log": dict(log.facts),
        "contradictions": found.summary(),
        "users": users,
        "splits": settings.splits,
        "level": settings.level,
        "expected": [low / settings.splits, high / settings.splits],
        "measures": rows,
        "notes": _doubts(rows, settings, users),
    }


def _doubts(
    rows: Mapping[str, Mapping[str, Any]], settings: Settings, users: int
) -> list[str]:
    notes = []
    wrong = [name for name, one in rows.items() if not one["ok"]]
    if wrong:
        notes.append(
            f"{', '.join(wrong)}: false positives outside what chance allows; with few "
            f"users ({users:,}) or a few that weigh very much the normal approximation "
            "fails: take more users, or cap what one user can contribute"
        )
    if users >= settings.most_users:
        notes.append(f"{users:,} users drawn by a digest of their id")
    return notes
