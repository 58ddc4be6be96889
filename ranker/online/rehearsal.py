"""A rehearsal of an online test: users made up by a click model choose between runs."""

import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from ranker.metrics.ranking import Run
from ranker.online import events, preference, simulate

_MADE = (
    "simulated: users, clicks and dwell are made up from the judgements by a "
    "position-based model; it rehearses an online test and is none"
)


def interleave(
    runs: Mapping[str, Run],
    grades: Mapping[str, Mapping[str, float]],
    *,
    users: int = 2000,
    depth: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """The report of `ranker.online interleave` on a log that simulated users leave.

    Each page is filled by all systems in turn (team-draft multileaving); users look by
    rank and click by grade (`simulate.Behaviour`).

    Args:
      runs: of two systems or more, by name.
      grades: judgements of the runs' queries, from 0 to 4.
      users: who come, each for five pages on average.
      depth: results of a page.
      seed: of users and clicks.

    Returns:
      The summary of `preference.analyse`, with `users` and `model`.

    Raises:
      DataError: where the runs have no judged query in common.
    """
    systems = simulate.pages_of_runs(runs, grades, depth)
    behaviour = simulate.Behaviour()
    rows = simulate.make_rows(
        simulate.mix(systems, length=depth),
        len(next(iter(systems.values()))),
        simulate.Traffic(users=users, seed=seed),
        behaviour,
    )
    with tempfile.TemporaryDirectory(prefix="ranker-rehearsal-") as folder:
        log = pathlib.Path(folder) / "log.tsv"
        simulate.write_rows(log, rows)
        with events.read_log([log], fields=preference.FIELDS) as read:
            summary = preference.analyse(read, preference.Settings())
    kept = ("command", "credit", "level", "pages", "clicked_pages", "pairs")
    return {
        **{name: summary[name] for name in kept},
        "users": users,
        "model": behaviour.model,
        "notes": [_MADE],
    }
