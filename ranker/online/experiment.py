"""`ab`: an experiment with a control and one treatment or more, from its log."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ranker.errors import ConfigError, DataError
from ranker.metrics.significance import holm
from ranker.online import estimates, measures, pages
from ranker.online.estimates import Effect, Moments
from ranker.online.events import Log
from ranker.online.measures import MEASURES, Days
from ranker.online.pages import Contradictions, PageRules, View

_CONTROLS = ("control", "a", "baseline", "old", "off", "0")  # names of a control
FEW = 100  # users of an arm or segment below which the normal approximation is poor
_NO_LIMIT = 1e30  # milliseconds


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `ab` is asked for."""

    primary: str = "PageCTR"
    control: str = ""
    before: float | None = None  # seconds since 1970 at which the test begins
    level: float = 0.95
    shares: Mapping[str, float] = field(default_factory=dict)  # planned, by arm
    srm: str = "stop"  # or report
    segments: tuple[str, ...] = ()
    sequential: bool = False
    planned: int = 5000  # users at which the confidence sequence is narrowest
    trigger: str = ""  # "", "column", "results" or "queries"
    trigger_queries: frozenset[str] = frozenset()
    rules: PageRules = field(default_factory=PageRules)

    def __post_init__(self):
        if not 0.5 <= self.level < 1:
            raise ConfigError(f"--level {self.level}: expected 0.5 to below 1")
        if self.planned < 1:
            raise ConfigError(f"--planned-users {self.planned}: expected 1 or more")


def analyse(log: Log, settings: Settings) -> dict[str, Any]:
    """The whole report, for JSON; `stopped` says why where it ends early.

    Raises:
      DataError: for a log with under two arms.
      ConfigError: for a setting that this log cannot serve.
    """
    primary = measures.check_primary(settings.primary, log)
    arms = _arms(log, settings)
    control = _control(arms, settings.control)
    slow, latency = _latency(log, control)
    found = Contradictions()
    triggers = _triggers(log, settings)
    view = View(
        arms=arms, before=settings.before, segments=settings.segments, triggers=triggers
    )
    days = measures.make_users(
        log, settings.rules, found, view, slow=slow, days_of=primary
    )
    summary: dict[str, Any] = {
        "command": "ab",
        "log": dict(log.facts),
        "rules": dict(pages.rules_in_words(settings.rules, "dwell" in log.has)),
        "contradictions": found.summary(),
        "control": control,
        "primary": primary,
        "level": settings.level,
        "arms": _sizes(log, latency),
        "notes": _notes(log, settings, _has_before(log, settings)),
    }
    sizes = {arm: one["users"] for arm, one in summary["arms"].items()}
    if len(sizes) < 2 or control not in sizes:
        raise DataError(
            f"{log.facts['files'][0]}: after leaving out what contradicts itself, "
            f"users remain in the arms {', '.join(sizes) or '(none)'} alone; see the "
            f"counts: {_counted(found)}"
        )
    ratio = estimates.sample_ratio(sizes, settings.shares)
    summary["srm"] = ratio.summary()
    if not ratio.ok:
        said = (
            f"sample-ratio mismatch: {_listed(ratio.observed)} users, expected "
            f"{_listed(ratio.expected)} (p = {ratio.p_value:.2g}); the arms do not "
            "hold comparable users, so no difference can be read as an effect. Find "
            "the cause (redirects, bots, logging that fails in one arm, a filter after "
            "assignment)"
        )
        if settings.srm == "stop":
            summary["stopped"] = f"{said}; --srm report shows the numbers all the same"
            return summary
        summary["notes"].insert(0, said)
    return _measured(log, settings, summary, days)


def _measured(
    log: Log, settings: Settings, summary: dict[str, Any], days: Days
) -> dict[str, Any]:
    """The rest of a report whose arms are comparable."""
    control, primary = summary["control"], summary["primary"]
    has_before = _has_before(log, settings)
    names = measures.available(log)
    by_measure = {name: measures.of_measure(log.connection, name) for name in names}
    treatments = [arm for arm in summary["arms"] if arm != control]
    summary["comparisons"] = {
        arm: _compare(by_measure, control, arm, settings, primary, has_before)
        for arm in treatments
    }
    curve = _curve(days)
    summary["days"] = {
        arm: _by_day(curve, control, arm, settings) for arm in treatments
    }
    if settings.sequential:
        summary["sequential"] = {
            arm: _sequential(summary["days"][arm], settings) for arm in treatments
        }
    if settings.segments:
        summary["segments"] = _segments(log, settings, primary, control)
    if settings.trigger or "triggered" in log.has:
        summary["triggered"] = _triggered(log, settings, control, treatments)
    small = [arm for arm, one in summary["arms"].items() if one["users"] < FEW]
    if small:
        summary["notes"].append(
            f"under {FEW} users in {', '.join(small)}: the intervals rest on a normal "
            "approximation, which needs more"
        )
    return summary


def _has_before(log: Log, settings: Settings) -> bool:
    return settings.before is not None and log.facts["first"] < settings.before


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{arm} {value:,.0f}" for arm, value in values.items())


def _counted(found: Contradictions) -> str:
    return ", ".join(f"{k} {n:,}" for k, n in found.counts.items()) or "none"


# --- arms ---


def _arms(log: Log, settings: Settings) -> list[str]:
    """Names of the arms, in order."""
    if "arm" not in log.has:
        raise DataError(
            f"{log.facts['files'][0]}: the column 'arm' is missing or empty; ab "
            "compares arms: log each page's arm, or name its column by --columns "
            "arm=COLUMN"
        )
    start = -1.0 if settings.before is None else settings.before
    names: dict[str, int] = {}
    for bucket in range(log.buckets):
        rows = log.connection.execute(
            f"SELECT arm, count(*) FROM {log.rows(bucket)} WHERE NOT click AND arm IS "
            f"NOT NULL AND time >= {start!r} GROUP BY arm"
        ).fetchall()
        for arm, count in rows:
            names[arm] = names.get(arm, 0) + count
    if not names and settings.before is not None:
        raise DataError(
            f"{log.facts['files'][0]}: no page with an arm at or after --before; the "
            f"log ends at {log.facts['last']:.0f} (seconds since 1970)"
        )
    if len(names) < 2:
        raise DataError(
            f"{log.facts['files'][0]}: found the arm {next(iter(names), '(none)')!r} "
            f"alone ({sum(names.values()):,} pages); a comparison needs two: was the "
            "log filtered to one arm, or is the arm in another column (--columns "
            "arm=COLUMN)?"
        )
    for arm in settings.shares:
        if arm not in names:
            raise ConfigError(
                f"--shares names the arm {arm!r}; the log has "
                f"{', '.join(sorted(names))}"
            )
    return sorted(names)


def _control(arms: Sequence[str], named: str) -> str:
    if named:
        if named not in arms:
            raise ConfigError(
                f"--control {named!r}: the log has the arms {', '.join(arms)}"
            )
        return named
    for word in _CONTROLS:
        for arm in arms:
            if arm.lower() == word:
                return arm
    return arms[0]


def _latency(log: Log, control: str) -> tuple[float, dict[str, list[float]]]:
    """The control's 99th percentile, and each arm's 50th, 95th and 99th (ms)."""
    if "latency" not in log.has:
        return _NO_LIMIT, {}
    rows = " UNION ALL ".join(
        f"SELECT arm, latency FROM {log.rows(b)} "
        "WHERE NOT click AND latency IS NOT NULL"
        for b in range(log.buckets)
    )
    found = log.connection.execute(
        f"SELECT arm, approx_quantile(latency, [0.5, 0.95, 0.99]) FROM ({rows}) "
        "WHERE arm IS NOT NULL GROUP BY arm ORDER BY arm"
    ).fetchall()
    by_arm = {arm: [float(v) for v in values] for arm, values in found}
    return by_arm.get(control, [0, 0, _NO_LIMIT])[2], by_arm


def _sizes(log: Log, latency: Mapping[str, list[float]]) -> dict[str, dict[str, Any]]:
    rows = log.connection.execute(
        "SELECT arm, count(*), sum(pages), sum(clicks), count(*) FILTER (before_pages "
        "> 0) FROM users WHERE arm IS NOT NULL GROUP BY arm ORDER BY arm"
    ).fetchall()
    sizes = {}
    for arm, users, shown, clicks, before in rows:
        sizes[arm] = {
            "users": users,
            "pages": int(shown),
            "clicks": int(clicks),
            "users_with_pre_period": before,
        }
        if arm in latency:
            sizes[arm]["latency"] = dict(
                zip(("p50", "p95", "p99"), latency[arm], strict=True)
            )
    return sizes


def _notes(log: Log, settings: Settings, has_before: bool) -> list[str]:
    notes = []
    if settings.before is None:
        notes.append(
            "no pre-period: pass --before TIME where the log holds pages from before "
            "the test began; CUPED then narrows the intervals"
        )
    elif not has_before:
        notes.append(
            "no pre-period: --before is given and no event is earlier; CUPED is not "
            "used"
        )
    if not settings.sequential:
        notes.append(
            "the p-values hold for one look, at an end fixed beforehand; whoever looks "
            "each day and stops at p < 0.05 is wrong far more often: --sequential "
            "gives p-values that allow it"
        )
    if "session" not in log.has:
        notes.append("the log has no sessions; they are made by the gap rule")
    return notes


# --- effects ---


def _compare(
    by_measure: Mapping[str, Mapping[str, Moments]],
    control: str,
    arm: str,
    settings: Settings,
    primary: str,
    cuped: bool,
) -> dict[str, Any]:
    """All measures of a treatment against the control."""
    found: dict[str, dict[str, Any]] = {}
    for name, parts in by_measure.items():
        if control not in parts or arm not in parts:
            continue
        plain = estimates.compare_arms(parts[control], parts[arm], level=settings.level)
        effect = plain
        if cuped:
            effect = estimates.compare_arms(
                parts[control], parts[arm], level=settings.level, cuped=True
            )
        if math.isnan(effect.control) or math.isnan(effect.treatment):
            continue
        found[name] = {
            **effect.summary(),
            "plain": plain.summary(),
            "better": MEASURES[name].better,
            "guardrail": MEASURES[name].guardrail,
            "what": MEASURES[name].what,
        }
    rest = {
        name: one["p_value"]
        for name, one in found.items()
        if name != primary and one["p_value"] is not None
    }
    corrected = holm(rest)
    for name, one in found.items():
        one["p_holm"] = one["p_value"] if name == primary else corrected.get(name)
    return found


def _curve(days: Days) -> dict[str, dict[int, np.ndarray]]:
    """By arm and day: users, sums and sums of products so far, and the day's sums.

    What a day adds to the sums of squares is the squares of the users' totals after it
    less those before it, so the sums so far are those of the days added up.
    """
    curve: dict[str, dict[int, np.ndarray]] = {}
    for arm, day in sorted(days):
        before = curve.setdefault(arm, {})
        new = days[arm, day].copy()
        if before:
            new[:6] += before[max(before)][:6]
        before[day] = new
    return curve


def _as_moments(row: np.ndarray) -> Moments:
    n, num, den, num2, den2, both = row[:6]
    mean = np.array([num / n, den / n, 0.0, 0.0])
    covariance = np.zeros((4, 4))
    below = max(n - 1, 1)
    covariance[0, 0] = (num2 - n * mean[0] ** 2) / below
    covariance[1, 1] = (den2 - n * mean[1] ** 2) / below
    covariance[0, 1] = covariance[1, 0] = (both - n * mean[0] * mean[1]) / below
    return Moments(int(n), mean, covariance)


def _by_day(
    curve: Mapping[str, Mapping[int, np.ndarray]],
    control: str,
    arm: str,
    settings: Settings,
) -> list[dict[str, Any]]:
    """The primary measure at the end of each day, and of the day alone."""
    days = sorted({*curve.get(control, {}), *curve.get(arm, {})})
    rows, lowest = [], 1.0
    for day in days:
        a, b = (_until(curve.get(one, {}), day) for one in (control, arm))
        if a is None or b is None or min(a[0], b[0]) < 2 or min(a[2], b[2]) <= 0:
            continue
        effect = estimates.compare_arms(
            _as_moments(a), _as_moments(b), level=settings.level
        )
        row: dict[str, Any] = {
            "day": _date(day),
            "users": int(a[0] + b[0]),
            "lift": effect.summary()["lift"],
            "lift_interval": effect.summary()["lift_interval"],
            "p_value": effect.summary()["p_value"],
            "of_the_day": {
                one: _ratio(curve.get(one, {}).get(day)) for one in (control, arm)
            },
        }
        if settings.sequential:
            p, half = _look(effect, int(a[0] + b[0]), settings)
            lowest = min(lowest, p)
            row |= {
                "always_valid_p": lowest,
                "always_valid_interval": [
                    effect.difference - half,
                    effect.difference + half,
                ]
                if math.isfinite(half)
                else [None, None],
            }
        rows.append(row)
    return rows


def _look(effect: Effect, users: int, settings: Settings) -> tuple[float, float]:
    if users < 2 * FEW:  # asymptotics have not begun
        return 1.0, math.inf
    return estimates.always_valid(
        effect.difference,
        effect.standard_error,
        users,
        planned=settings.planned,
        level=settings.level,
    )


def _until(rows: Mapping[int, np.ndarray], day: int) -> np.ndarray | None:
    earlier = [one for one in rows if one <= day]
    return rows[max(earlier)] if earlier else None


def _ratio(row: np.ndarray | None) -> float | None:
    return None if row is None or row[7] <= 0 else float(row[6] / row[7])


def _date(day: int) -> str:
    return str(np.datetime64(day, "D"))


def _sequential(
    days: Sequence[Mapping[str, Any]], settings: Settings
) -> dict[str, Any]:
    """What looking at the end of each day amounts to."""
    alpha = 1 - settings.level
    last = days[-1] if days else {}
    decided = [one["day"] for one in days if one["always_valid_p"] < alpha]
    return {
        "looks": len(days),
        "planned_users": settings.planned,
        "p_value": last.get("always_valid_p", 1.0),
        "interval": last.get("always_valid_interval", [None, None]),
        "decided_on": decided[0] if decided else None,
    }


# --- parts of the traffic ---


def _segments(
    log: Log, settings: Settings, primary: str, control: str
) -> list[dict[str, Any]]:
    rows = []
    for name in settings.segments:
        values = log.connection.execute(
            f'SELECT "{name}", count(*) AS n FROM users GROUP BY 1 ORDER BY n DESC, 1 '
            "LIMIT 20"
        ).fetchall()
        for value, _ in values:
            where = f'"{name}" IS NULL' if value is None else f'"{name}" = ?'
            # A parameter would be needed in each aggregate; the value is quoted.
            if value is not None:
                quoted = "'" + str(value).replace("'", "''") + "'"
                where = where.replace("?", quoted)
            parts = measures.of_measure(log.connection, primary, where=where)
            for arm in sorted(set(parts) - {control}):
                if control not in parts or min(parts[control].n, parts[arm].n) < 2:
                    continue
                effect = estimates.compare_arms(
                    parts[control], parts[arm], level=settings.level
                )
                rows.append(
                    {
                        "segment": name,
                        "value": value,
                        "arm": arm,
                        "users": parts[control].n + parts[arm].n,
                        **effect.summary(),
                    }
                )
    known = {
        str(at): row["p_value"]
        for at, row in enumerate(rows)
        if row["p_value"] is not None
    }
    corrected = holm(known)
    for at, row in enumerate(rows):
        row["p_holm"] = corrected.get(str(at))
    return rows


def _triggers(log: Log, settings: Settings) -> str:
    """SQL that says of a page whether the arms would show it different results."""
    if settings.trigger in ("", "column"):
        if settings.trigger == "column" and "triggered" not in log.has:
            raise DataError(
                f"{log.facts['files'][0]}: --trigger column needs a column "
                "'triggered', true or false on every page of either arm"
            )
        return ""
    connection = log.connection
    if settings.trigger == "queries":
        connection.execute("CREATE OR REPLACE TABLE differing (query VARCHAR)")
        connection.executemany(
            "INSERT INTO differing VALUES (?)",
            [[query] for query in sorted(settings.trigger_queries)] or [[None]],
        )
    else:
        _differing(log)
    return '("query" IN (FROM differing))'


def _differing(log: Log) -> None:
    """Queries for which the arms showed other results, as the log has them."""
    if not {"document", "position", "query", "arm"} <= log.has:
        raise DataError(
            f"{log.facts['files'][0]}: --trigger results needs the shown results: page "
            "rows with query, arm, document_id and position"
        )
    shown = (
        "SELECT any_value(query) AS query, any_value(arm) AS arm, "
        "bit_xor(hash(concat(document, ':', position))) AS digest FROM {} "
        "WHERE NOT click AND "
        "document IS NOT NULL AND arm IS NOT NULL GROUP BY u, p"
    )
    for bucket in range(log.buckets):
        verb = "INSERT INTO" if bucket else "CREATE OR REPLACE TABLE"
        log.connection.execute(
            f"{verb} shown {'' if bucket else 'AS'} SELECT DISTINCT query, arm, digest "
            f"FROM ({shown.format(log.rows(bucket))})"
        )
    log.connection.execute(
        "CREATE OR REPLACE TABLE differing AS SELECT query FROM (SELECT query, digest, "
        "count(DISTINCT arm) AS n FROM shown GROUP BY query, digest) AS one "
        "WHERE query IN (SELECT query FROM shown GROUP BY query "
        "HAVING count(DISTINCT arm) > 1) "
        "GROUP BY query HAVING min(n) < 2"
    )


def _triggered(
    log: Log, settings: Settings, control: str, treatments: Sequence[str]
) -> dict[str, Any]:
    """PageCTR on the pages whose results differ, among users that saw one."""
    parts = measures.moments(
        log.connection, "triggered_clicked", "triggered", where="triggered > 0"
    )
    row = log.connection.execute(
        "SELECT sum(triggered), sum(pages), count(*) FILTER (triggered > 0), count(*) "
        "FROM users"
    ).fetchone()
    assert row
    shown, total, users, everyone = row
    result: dict[str, Any] = {
        "measure": "PageCTR",
        "share_of_pages": float(shown / total) if total else 0.0,
        "users": users,
        "share_of_users": users / everyone if everyone else 0.0,
        "comparisons": {},
    }
    sizes = {arm: one.n for arm, one in parts.items()}
    if control in sizes and len(sizes) > 1:
        result["srm"] = estimates.sample_ratio(sizes, settings.shares).summary()
    for arm in treatments:
        if control in parts and arm in parts:
            result["comparisons"][arm] = estimates.compare_arms(
                parts[control], parts[arm], level=settings.level
            ).summary()
    return result
