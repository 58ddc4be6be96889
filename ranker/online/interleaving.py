"""Interleaving: one page of results from two rankers or more, for a server to call.

Pure functions. What is random comes from `key`, a digest of query, user and day, so
that a user who reloads a page sees it again, and a server needs no state. Log each
shown result with its `team` (for `optimised`, also with its credit as `score`), and
`python -m ranker.online interleave` says which ranker users prefer.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

A, B, BOTH = "a", "b", "both"
MAX_LENGTH = 12  # of `optimised`: lists double with each result


def make_key(query: str, user: str, day: str, *, salt: str = "") -> bytes:
    """The key of a page: the same query, user and day see the same page.

    Args:
      query: as typed, or its id.
      user: id of whoever asks.
      day: such as "2026-11-27"; another day shows another draw.
      salt: of the experiment, so that two experiments draw apart.

    >>> make_key("tea", "u1", "2026-11-27") == make_key("tea", "u1", "2026-11-27")
    True
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (salt, query, user, day):
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.digest()


class _Chance:
    """Random numbers that are the same on every machine and version."""

    def __init__(self, key: bytes):
        self._key, self._drawn = key, 0

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        self._drawn += 1
        raw = hashlib.blake2b(
            self._drawn.to_bytes(8, "big"), key=self._key, digest_size=8
        ).digest()
        return (int.from_bytes(raw, "big") >> 11) / 2**53

    def coin(self) -> bool:
        return self.unit() < 0.5

    def shuffle(self, items: Sequence[str]) -> list[str]:
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = int(self.unit() * (last + 1))
            order[last], order[other] = order[other], order[last]
        return order


@dataclass(frozen=True)
class Interleaved:
    """A page to show, and whom a click on each result speaks for."""

    documents: tuple[str, ...]
    teams: tuple[str, ...]  # the ranker's name, or "both"
    credits: tuple[float, ...]  # of a click: above 0 for a, below 0 for b


def _check(*rankings: Sequence[str]) -> None:
    for ranking in rankings:
        if len(set(ranking)) != len(ranking):
            twice = next(one for one in ranking if list(ranking).count(one) > 1)
            raise ValueError(f"a ranking has the document {twice!r} twice")


def team_draft(
    a: Sequence[str], b: Sequence[str], key: bytes, *, length: int = 10
) -> Interleaved:
    """Team draft (Radlinski et al., 2008): the rankers pick in turn, a coin begins.

    In each round the coin says who picks first; each picks its best result that is not
    on the page. Unbiased: two rankers of equal worth win equally often.

    Args:
      a: document ids, best first, none twice.
      b: likewise.
      key: of `make_key`.
      length: results of the page; fewer where the rankings have no more.

    Raises:
      ValueError: for a document twice in a ranking.
    """
    _check(a, b)
    chance, rest = _Chance(key), {A: list(a), B: list(b)}
    shown: list[str] = []
    teams: list[str] = []
    while len(shown) < length:
        counts = teams.count(A), teams.count(B)
        first = counts[0] < counts[1] or (counts[0] == counts[1] and chance.coin())
        team = A if first else B
        picked = _pick(rest[team], shown)
        if picked is None:
            team = B if first else A
            picked = _pick(rest[team], shown)
            if picked is None:
                break
        shown.append(picked)
        teams.append(team)
    return _by_team(shown, teams)


def _pick(rest: list[str], shown: Sequence[str]) -> str | None:
    while rest and rest[0] in shown:
        rest.pop(0)
    return rest[0] if rest else None


def _by_team(shown: Sequence[str], teams: Sequence[str]) -> Interleaved:
    worth = {A: 1.0, B: -1.0}
    return Interleaved(
        tuple(shown), tuple(teams), tuple(worth.get(team, 0.0) for team in teams)
    )


def multileave(
    rankings: Mapping[str, Sequence[str]], key: bytes, *, length: int = 10
) -> Interleaved:
    """Team-draft multileaving (Schuth et al., 2014): the same for many rankers.

    In each round the rankers pick in random order.

    Args:
      rankings: name -> document ids, best first.
      key: of `make_key`.
      length: results of the page.

    Raises:
      ValueError: for a document twice in a ranking, or no ranking.
    """
    if not rankings:
        raise ValueError("multileaving needs at least one ranking")
    _check(*rankings.values())
    chance = _Chance(key)
    rest = {name: list(documents) for name, documents in rankings.items()}
    shown: list[str] = []
    teams: list[str] = []
    while len(shown) < length:
        before = len(shown)
        for name in chance.shuffle(sorted(rankings)):
            picked = _pick(rest[name], shown)
            if picked is not None and len(shown) < length:
                shown.append(picked)
                teams.append(name)
        if len(shown) == before:
            break
    return _by_team(shown, teams)


def balanced(
    a: Sequence[str], b: Sequence[str], key: bytes, *, length: int = 10
) -> Interleaved:
    """Balanced interleaving (Joachims, 2003): a coin says who begins, then by turns.

    Its credit is biased where the rankings are nearly the same: with a = (1, 2, 3) and
    b = (2, 3, 1) a user who clicks at random prefers b. It is here to be compared with;
    use `team_draft`. Clicks are credited by `balanced_credit`, not by team.

    Args:
      a: document ids, best first, none twice.
      b: likewise.
      key: of `make_key`.
      length: results of the page.
    """
    _check(a, b)
    a_first = _Chance(key).coin()
    shown: list[str] = []
    i = j = 0
    while len(shown) < length and (i < len(a) or j < len(b)):
        from_a = j >= len(b) or (i < len(a) and (i < j or (i == j and a_first)))
        picked = a[i] if from_a else b[j]
        i, j = (i + 1, j) if from_a else (i, j + 1)
        if picked not in shown:
            shown.append(picked)
    return Interleaved(tuple(shown), (BOTH,) * len(shown), (0.0,) * len(shown))


def balanced_credit(
    a: Sequence[str], b: Sequence[str], shown: Sequence[str], clicked: Sequence[str]
) -> int:
    """1 where the clicks prefer a, -1 where b, 0 for a tie (Joachims, 2003).

    Of each ranking the first k results count, k being the depth at which the lowest
    clicked result is found by either of them.

    >>> balanced_credit("xy", "yx", "xy", ["y"])
    -1
    """
    places = [at for at, one in enumerate(shown) if one in clicked]
    if not places:
        return 0
    lowest = shown[max(places)]
    k = min(
        (list(one).index(lowest) + 1 for one in (a, b) if lowest in one),
        default=len(shown),
    )
    score = len(set(a[:k]) & set(clicked)) - len(set(b[:k]) & set(clicked))
    return (score > 0) - (score < 0)


def probabilistic(
    a: Sequence[str],
    b: Sequence[str],
    key: bytes,
    *,
    length: int = 10,
    tau: float = 3.0,
) -> Interleaved:
    """Probabilistic interleaving (Hofmann et al., 2011), credit over all assignments.

    At each place a coin chooses the ranker, which draws a result with a chance
    proportional to 1 / rank^tau of those left. A click's credit is the chance that a
    had drawn the result less the chance that b had, given the page.

    Args:
      a: document ids, best first, none twice.
      b: likewise.
      key: of `make_key`.
      length: results of the page.
      tau: how strongly a ranker prefers its first results.
    """
    _check(a, b)
    chance = _Chance(key)
    weights = [
        {one: 1 / (rank + 1) ** tau for rank, one in enumerate(ranking)}
        for ranking in (a, b)
    ]
    shown: list[str] = []
    teams: list[str] = []
    credits: list[float] = []
    while len(shown) < length and (weights[0] or weights[1]):
        sums = [sum(one.values()) for one in weights]
        first = int(not chance.coin())
        drawn = first if weights[first] else 1 - first
        left = chance.unit() * sums[drawn]
        picked = next(iter(weights[drawn]))
        for one, weight in weights[drawn].items():
            picked, left = one, left - weight
            if left < 0:
                break
        odds = [
            one.get(picked, 0.0) / total if total else 0.0
            for one, total in zip(weights, sums, strict=True)
        ]
        shown.append(picked)
        teams.append((A, B)[drawn])
        credits.append((odds[0] - odds[1]) / (odds[0] + odds[1]))
        for one in weights:
            one.pop(picked, None)
    return Interleaved(tuple(shown), tuple(teams), tuple(credits))


def optimised(
    a: Sequence[str], b: Sequence[str], key: bytes, *, length: int = 10
) -> Interleaved:
    """Optimised interleaving (Radlinski and Craswell, 2013): unbiased, most sensitive.

    Of all pages whose every prefix joins a prefix of each ranking, some are shown with
    chances that make clicks at random prefer neither ranker at any depth, and among
    those chances the ones that tell most. A click's credit is the difference of the
    result's two ranks (linear rank difference). Where no such chances exist, which long
    rankings of different documents can have, it is a team draft.

    Args:
      a: document ids, best first, none twice.
      b: likewise.
      key: of `make_key`.
      length: results of the page, at most `MAX_LENGTH`.

    Raises:
      ValueError: for a document twice in a ranking, or too long a page.
    """
    _check(a, b)
    if length > MAX_LENGTH:
        raise ValueError(
            f"length is {length}; optimised interleaving tries every page, up to "
            f"{MAX_LENGTH} results: use team_draft for longer ones"
        )
    a, b = tuple(a[:length]), tuple(b[:length])
    pages, chances = optimised_pages(a, b, length)
    if not pages:
        return team_draft(a, b, key, length=length)
    left = _Chance(key).unit()
    shown = pages[-1]
    for page, one in zip(pages, chances, strict=True):
        left -= one
        if left < 0:
            shown = page
            break
    credits = tuple(rank_difference(one, a, b) for one in shown)
    teams = tuple(A if one > 0 else B if one < 0 else BOTH for one in credits)
    return Interleaved(shown, teams, credits)


def rank_difference(one: str, a: Sequence[str], b: Sequence[str]) -> float:
    """How many ranks higher a document is in `a` than in `b`; missing: below all."""

    def rank(ranking: Sequence[str]) -> int:
        return ranking.index(one) if one in ranking else len(ranking)

    return float(rank(b) - rank(a))


def _allowed(a: Sequence[str], b: Sequence[str], length: int) -> list[tuple[str, ...]]:
    """Pages whose every next result is the best left of a or of b."""
    pages: dict[tuple[str, ...], None] = {(): None}
    for _ in range(length):
        longer: dict[tuple[str, ...], None] = {}
        for page in pages:
            nexts = {_pick(list(a), page), _pick(list(b), page)} - {None}
            for one in sorted(str(n) for n in nexts):
                longer[(*page, one)] = None
            if not nexts:
                longer[page] = None
        pages = longer
    return list(pages)


@lru_cache(maxsize=4096)
def optimised_pages(
    a: tuple[str, ...], b: tuple[str, ...], length: int
) -> tuple[list[tuple[str, ...]], list[float]]:
    """Pages to show and their chances; none where there is no unbiased choice."""
    from scipy.optimize import linprog

    pages = _allowed(a, b, length)
    credit = np.array([[rank_difference(one, a, b) for one in page] for page in pages])
    # No depth of clicking at random may prefer either.
    depth = np.cumsum(credit, axis=1).T
    equal = np.vstack([depth, np.ones(len(pages))])
    target = np.zeros(len(equal))
    target[-1] = 1
    worth = [_sensitivity(row) for row in credit]
    found = linprog(-np.array(worth), A_eq=equal, b_eq=target, bounds=(0, 1))
    if not found.success:
        return [], []
    kept = [
        (page, float(p)) for page, p in zip(pages, found.x, strict=True) if p > 1e-9
    ]
    total = sum(p for _, p in kept)
    return [page for page, _ in kept], [p / total for _, p in kept]


def _sensitivity(credits: np.ndarray) -> float:
    """How evenly a click, 1 / rank likely, speaks for a, for b and for neither."""
    looks = 1 / np.arange(1, len(credits) + 1)
    looks = looks / looks.sum()
    parts = [
        looks[credits > 0].sum(),
        looks[credits < 0].sum(),
        looks[credits == 0].sum(),
    ]
    entropy = -sum(p * math.log(p) for p in parts if p > 0)
    return entropy * (1 - parts[2])
