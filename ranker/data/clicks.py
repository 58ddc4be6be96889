"""Click logs to continued pre-training examples, by stated rules.

In this order:

1. a row that was not clicked is dropped;
2. so is one whose dwell time is known and under `min_dwell`;
3. so is one with neither title nor summary;
4. rows with the same query (case and spaces aside) and the same document (its id, or
   its title and summary) become one example, their counts added;
5. of each query, the `max_per_query` most clicked documents are kept, ties by first
   appearance;
6. a query and all its examples go to train or to dev, by a hash of the query.

The counts are in memory while the log is read: one entry for each distinct pair.
"""

import hashlib
from collections.abc import Iterable

from ranker import config
from ranker.data.records import Click, ClickExample


def _fold(text: str) -> str:
    return " ".join(text.split()).casefold()


def in_dev(query: str, fraction: float) -> bool:
    """Whether a query belongs to dev: the same answer everywhere, for ever."""
    digest = hashlib.sha256(_fold(query).encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def clicks_to_examples(
    clicks: Iterable[Click], rules: config.ClickRules
) -> tuple[dict[str, list[ClickExample]], dict[str, int]]:
    """Applies the rules.

    Returns:
      Examples of the splits "train" and "dev", in the order in which the log first
      shows them, and a report: rows read, rows dropped by each rule, examples kept.
    """
    report: dict[str, int] = dict.fromkeys(
        (
            "clicks, rows read",
            "clicks, dropped: not clicked",
            "clicks, dropped: dwell too short",
            "clicks, dropped: no title and no summary",
            "clicks, merged: same query and document",
            "clicks, dropped: over the cap of a query",
        ),
        0,
    )
    read, unclicked, short, empty, merged, capped = report
    queries: dict[str, dict[object, ClickExample]] = {}
    for click in clicks:
        report[read] += 1
        if not click.clicked:
            report[unclicked] += 1
        elif click.dwell is not None and click.dwell < rules.min_dwell:
            report[short] += 1
        elif not click.title and not click.summary:
            report[empty] += 1
        else:
            documents = queries.setdefault(_fold(click.query), {})
            name = click.document_id or (_fold(click.title), _fold(click.summary))
            known = documents.get(name)
            count = click.count
            if known is not None:
                report[merged] += 1
                count += known.count
            documents[name] = ClickExample(
                known.query if known else click.query,
                known.title if known else click.title,
                known.summary if known else click.summary,
                count,
            )
    splits: dict[str, list[ClickExample]] = {"train": [], "dev": []}
    for query, documents in queries.items():
        examples = sorted(documents.values(), key=lambda one: -one.count)
        report[capped] += max(0, len(examples) - rules.max_per_query)
        split = "dev" if in_dev(query, rules.dev_fraction) else "train"
        splits[split] += examples[: rules.max_per_query]
    for split, examples in splits.items():
        report[f"clicks, examples, {split}"] = len(examples)
    return splits, report
