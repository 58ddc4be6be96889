"""Click logs to continued pre-training examples, by stated rules.

In this order:

1. a row that was not clicked is dropped;
2. so is one whose dwell time is known and under `min_dwell`;
3. so is one whose query is held out (of dev or test, by its text);
4. a row with a document id and neither title nor summary takes them from the corpus; it
   is dropped where the corpus lacks the document, as is one with none of the three;
5. rows with the same query (case and spaces aside) and the same document (its id, or
   its title and summary) become one example, their counts added. Of several spellings
   the first in the order of characters stays;
6. of each query, the `max_per_query` most clicked documents are kept, ties by document;
7. a query and all its examples go to train or to dev, by a hash of the query.

Examples are in the order of that hash. So they depend on what the log holds and not on
the order that it holds it in, and any engine makes the same ones. Here the rules are in
plain Python, in memory: what the engines (`click_engine`, `beam`) are measured against.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ranker import config
from ranker.data.records import Click, ClickExample
from ranker.data.words import fold

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
        }


def place(query: str) -> str:
    """Where a folded query stands among all: 64 hexadecimal digits."""
    return hashlib.sha256(query.encode()).hexdigest()


def dev_bound(fraction: float) -> str:
    """Queries whose `place` begins lower than this are dev's."""
    return f"{min(int(-(-fraction * 2**64 // 1)), 2**64 - 1):016x}"


def in_dev(query: str, fraction: float) -> bool:
    """Whether a query belongs to dev: the same answer everywhere, for ever."""
    return place(fold(query))[:16] < dev_bound(fraction)


def document_key(document_id: str, title: str, summary: str) -> str:
    """What tells a document of a log from others."""
    return f"d{document_id}" if document_id else f"t{fold(title)}\0{fold(summary)}"


def spelling(query: str, title: str, summary: str) -> str:
    """One text that orders the spellings of an example; no part holds a null."""
    return f"{title}\0{summary}\0{query}"


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
    counts = ClickCounts()
    queries: dict[str, dict[str, tuple[str, str, int]]] = {}
    held: set[str] = set()
    for click in clicks:
        counts.rows += 1
        query = fold(click.query)
        found: Texts | None = (click.title, click.summary)
        if not click.title and not click.summary and click.document_id:
            found = texts(click.document_id)
        if not click.clicked:
            counts.dropped[NOT_CLICKED] += 1
        elif click.dwell is not None and click.dwell < rules.min_dwell:
            counts.dropped[SHORT] += 1
        elif query in held_out:
            counts.held_out += 1
            held.add(query)
        elif found is None:
            counts.dropped[UNKNOWN] += 1
        elif not any(found):
            counts.dropped[EMPTY] += 1
        else:
            documents = queries.setdefault(query, {})
            name = document_key(click.document_id, *found)
            text = spelling(click.query, *found)
            known = documents.get(name)
            counts.merged += known is not None
            queried, spelt, count = known or (click.query, text, 0)
            documents[name] = (
                min(queried, click.query),
                min(spelt, text),
                count + click.count,
            )
    counts.held_out_queries = len(held)
    splits: dict[str, list[ClickExample]] = {"train": [], "dev": []}
    bound = dev_bound(rules.dev_fraction)
    for where, query in sorted((place(query), query) for query in queries):
        most = sorted(queries[query].items(), key=lambda one: (-one[1][2], one[0]))
        counts.dropped[CAPPED] += max(0, len(most) - rules.max_per_query)
        examples = splits["dev" if where[:16] < bound else "train"]
        for _, (queried, spelt, count) in most[: rules.max_per_query]:
            title, summary, _ = spelt.split("\0")
            examples.append(ClickExample(queried, title, summary, count))
    counts.examples = {split: len(examples) for split, examples in splits.items()}
    return splits, counts


class Digest:
    """A digest of click examples that their order does not matter for."""

    def __init__(self) -> None:
        """Of no example."""
        self._sum = 0

    def add(self, example: ClickExample) -> None:
        """Takes in one more."""
        text = f"{example.query}\0{example.title}\0{example.summary}\0{example.count}"
        found = hashlib.blake2b(text.encode(), digest_size=16).digest()
        self._sum = (self._sum + int.from_bytes(found, "big")) % 2**128

    def join(self, other: str) -> None:
        """Takes in the examples of another digest."""
        self._sum = (self._sum + int(other, 16)) % 2**128

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        return f"{self._sum:032x}"
