"""Click logs to continued pre-training examples, by stated rules.

In this order:

1. a row that was not clicked is dropped;
2. so is one whose dwell time is known and under `min_dwell`;
3. so is one whose query is held out (of dev or test, by its text);
4. a row with a document id and neither title nor summary takes them from the corpus; it
   is dropped where the corpus lacks the document, as is one with none of the three;
5. with `count_by=dwell` a row of known dwell counts its clicks times the whole number
   of `min_dwell` in its dwell, 1 to 10 times; else it counts its clicks;
6. rows with the same query (case and spaces aside) and the same document (its id, or
   its title and summary) become one example, their counts added. Of several spellings
   the first in the order of characters stays;
7. of each query, the `max_per_query` most clicked documents are kept, ties by document;
8. a query and all its examples go to train or to dev, by a hash of the query.

Examples are in the order of that hash. So they depend on what the log holds and not on
the order that it holds it in, and any engine makes the same ones. Here the rules are in
plain Python, in memory: what the engines (`click_engine`, `beam`) are measured against.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ranker import config
from ranker.data.records import Click, ClickExample
from ranker.data.words import fold

_compute: Any = pyarrow.compute  # makes its functions while it is imported
_BYTES = pa.large_binary()
NOT_CLICKED = "not clicked"
SHORT = "dwell too short"
EMPTY = "no title, no summary and no document"
UNKNOWN = "document not in the corpus"
CAPPED = "over the cap of a query"
REASONS = (NOT_CLICKED, SHORT, EMPTY, UNKNOWN, CAPPED)

Texts = tuple[str, str]  # title and summary


@dataclass
class ClickCounts:
    """What became of the rows of a log."""

    rows: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    by: str = "clicks"  # what a row counts by (rule 5)
    clicked: int = 0  # clicks of the rows that rules 1 and 2 leave
    counted: int = 0  # the same by rule 5
    timed: int = 0  # rows of them that count by their dwell
    merged: int = 0  # rows that were added to another's example
    held_out: int = 0  # rows whose query is held out
    held_out_queries: int = 0
    examples: dict[str, int] = field(default_factory=dict)  # by split

    def report(self) -> dict[str, Any]:
        """For report.json."""
        return {
            "rows": self.rows,
            "examples": self.examples,
            "merged": self.merged,
            "dropped": self.dropped,
            "counted": {
                "by": self.by,
                "clicks": self.clicked,
                "counts": self.counted,
                "rows_by_dwell": self.timed,
            },
        }


def query_place(query: str) -> str:
    """Where a folded query stands among all: 64 hexadecimal digits."""
    return hashlib.sha256(query.encode()).hexdigest()


def dev_bound(fraction: float) -> str:
    """Queries whose `query_place` begins lower than this are dev's."""
    return f"{min(int(-(-fraction * 2**64 // 1)), 2**64 - 1):016x}"


def in_dev(query: str, fraction: float) -> bool:
    """Whether a query belongs to dev: the same answer everywhere, for ever."""
    return query_place(fold(query)) < dev_bound(fraction)


def document_key(document_id: str, title: str, summary: str) -> str:
    """What tells a document of a log from others."""
    return f"d{document_id}" if document_id else f"t{fold(title)}\0{fold(summary)}"


def spelling(query: str, title: str, summary: str) -> str:
    """One text that orders the spellings of an example; no part holds a null."""
    return f"{title}\0{summary}\0{query}"


# --- the rules, one row, one example, one query at a time: the engines share them ---

HELD_OUT = "held out"
Pair = tuple[str, str]  # a folded query, and a document's key
Seen = tuple[str, str, int]  # the first spelling of the query, of all, and a count


def reason_to_drop(
    click: Click, query: str, rules: config.ClickRules, held_out: frozenset[str]
) -> str:
    """Rules 1 to 3: why a row is dropped, or "".

    Args:
      click: the row.
      query: its query, folded.
      rules: numbers that the rules take.
      held_out: folded queries that nothing is trained on.
    """
    if not click.clicked:
        return NOT_CLICKED
    if click.dwell is not None and click.dwell < rules.min_dwell:
        return SHORT
    return HELD_OUT if query in held_out else ""


def is_bare(click: Click) -> bool:
    """Whether a row names a document and has no text: the corpus has it."""
    return bool(click.document_id) and not click.title and not click.summary


MOST = 10  # times that a click counts by its dwell, at most


def by_dwell(click: Click, rules: config.ClickRules) -> bool:
    """Whether a row counts by its dwell."""
    return rules.count_by == "dwell" and click.dwell is not None


def weigh_row(click: Click, rules: config.ClickRules) -> Click:
    """Rule 5: the row with what it counts.

    >>> row = Click("q", "t", "", dwell=65.0, count=2)
    >>> weigh_row(row, config.ClickRules(count_by="dwell")).count
    12
    """
    if not by_dwell(click, rules) or click.dwell is None:
        return click
    times = min(max(math.floor(click.dwell / rules.min_dwell), 1), MOST)
    return dataclasses.replace(click, count=click.count * times)


def pair(click: Click, query: str, texts: Texts) -> tuple[Pair, Seen]:
    """What rows are merged by, and what is known of one."""
    spelt = spelling(click.query, *texts)
    name = document_key(click.document_id, *texts)
    return (query, name), (click.query, spelt, click.count)


def merge_rows(one: Seen, other: Seen) -> Seen:
    """Rule 6: two rows of one pair; neither the order nor the grouping matters."""
    return min(one[0], other[0]), min(one[1], other[1]), one[2] + other[2]


def merge_into(documents: dict[Any, Seen], key: Any, seen: Seen) -> bool:
    """Rule 6 for what is seen of one key; whether it was there already."""
    known = documents.get(key)
    documents[key] = merge_rows(known, seen) if known else seen
    return known is not None


def rank_clicked(found: tuple[str, Seen]) -> tuple[int, str]:
    """Rule 7: the order of a query's documents, the most clicked first."""
    name, (_, _, count) = found
    return -count, name


def to_example(seen: Seen) -> ClickExample:
    """The example of a pair."""
    queried, spelt, count = seen
    title, summary, _ = spelt.split("\0")
    return ClickExample(queried, title, summary, count)


def most_clicked(documents: Mapping[str, Seen], most: int) -> list[ClickExample]:
    """Rule 7: the examples of a query, the most clicked first, at most `most`."""
    best = sorted(documents.items(), key=rank_clicked)[:most]
    return [to_example(seen) for _, seen in best]


def clicks_to_examples(
    clicks: Iterable[Click],
    rules: config.ClickRules,
    *,
    held_out: frozenset[str] = frozenset(),
    texts: Callable[[str], Texts | None] = lambda _: None,
) -> tuple[dict[str, list[ClickExample]], ClickCounts]:
    """Applies the rules.

    Args:
      clicks: rows, in any order.
      rules: numbers that the rules take.
      held_out: folded queries that nothing is trained on.
      texts: title and summary of a document of the corpus; None: there is none.

    Returns:
      Examples of the splits "train" and "dev", and what became of the rows.
    """
    counts = ClickCounts(by=rules.count_by)
    queries: dict[str, dict[str, Seen]] = {}
    held: set[str] = set()
    for click in clicks:
        counts.rows += 1
        row, click = click, weigh_row(click, rules)
        query = fold(click.query)
        reason = reason_to_drop(click, query, rules, held_out)
        if reason not in (NOT_CLICKED, SHORT):
            counts.clicked += row.count
            counts.counted += click.count
            counts.timed += by_dwell(row, rules)
        found: Texts | None = (click.title, click.summary)
        if not reason and is_bare(click):
            found = texts(click.document_id)
        if reason == HELD_OUT:
            counts.held_out += 1
            held.add(query)
        elif reason or found is None or not any(found):
            counts.dropped[reason or (UNKNOWN if found is None else EMPTY)] += 1
        else:
            documents = queries.setdefault(query, {})
            (_, name), seen = pair(click, query, found)
            counts.merged += merge_into(documents, name, seen)
    counts.held_out_queries = len(held)
    splits: dict[str, list[ClickExample]] = {"train": [], "dev": []}
    bound = dev_bound(rules.dev_fraction)
    for where, query in sorted((query_place(query), query) for query in queries):
        kept = most_clicked(queries[query], rules.max_per_query)
        counts.dropped[CAPPED] += len(queries[query]) - len(kept)
        splits["dev" if where < bound else "train"] += kept
    counts.examples = {split: len(examples) for split, examples in splits.items()}
    return splits, counts


@dataclass(frozen=True, eq=False)
class Repeated:
    """Click examples, each as often as its count says: a source of an epoch's reads."""

    source: Any  # of `ClickExample`, by index
    ends: np.ndarray  # int64 [n], reads up to and with each example

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> ClickExample:
        return self.source[int(np.searchsorted(self.ends, index, side="right"))]

    def report(self) -> str:
        """One line for the log."""
        times = np.diff(self.ends, prepend=0)
        often = np.sort(times)[::-1]
        tenth = often[: max(len(often) // 10, 1)].sum() / max(len(self), 1)
        return (
            f"{len(times):,} examples of clicks are read {len(self):,} times an epoch, "
            f"{times.max(initial=0)} times at most; a tenth of them, the most clicked, "
            f"makes {tenth:.0%} of what is read"
        )


def repeat(source: Any, settings: config.Language) -> Repeated:
    """The examples as often as `settings.repeat` says; reads them all once.

    >>> rows = [ClickExample("q", "t", "", count) for count in (1, 3, 900)]
    >>> made = repeat(rows, config.Language(repeat="log_count", most=5))
    >>> [made[at].count for at in range(len(made))]
    [1, 3, 3, 900, 900, 900, 900, 900]
    """
    counts = np.fromiter((source[at].count for at in range(len(source))), np.int64)
    times = {
        "once": np.ones_like(counts),
        "log_count": 1 + np.floor(np.log2(np.maximum(counts, 1))).astype(np.int64),
        "count": np.maximum(counts, 1),
    }[settings.repeat]
    return Repeated(source, np.cumsum(np.minimum(times, settings.most)))


def _hash(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16).digest()


class Digest:
    """A digest of click examples that their order does not matter for."""

    def __init__(self) -> None:
        """Of no example."""
        self._sum = 0

    def add(self, example: ClickExample) -> None:
        """Takes in one more."""
        text = f"{example.query}\0{example.title}\0{example.summary}\0{example.count}"
        self._sum = (self._sum + int.from_bytes(_hash(text.encode()), "big")) % 2**128

    def add_batch(self, batch: pa.RecordBatch) -> None:
        """Takes in many: columns query, title, summary and count."""
        parts = [
            _compute.cast(_compute.cast(batch[name], pa.large_string()), _BYTES)
            for name in ("query", "title", "summary", "count")
        ]
        null = pa.scalar(b"\0", _BYTES)
        texts = _compute.binary_join_element_wise(*parts, null).to_pylist()
        found = np.frombuffer(b"".join(map(_hash, texts)), ">u4").reshape(-1, 4)
        for place, total in enumerate(found.sum(axis=0, dtype=np.uint64).tolist()):
            self._sum += total << 32 * (3 - place)
        self._sum %= 2**128

    def join(self, other: str) -> None:
        """Takes in the examples of another digest."""
        self._sum = (self._sum + int(other, 16)) % 2**128

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        return f"{self._sum:032x}"
