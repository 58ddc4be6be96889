"""Lists whose labels come from clicks, as `ranker.online impressions` writes them."""

import json
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ranker.data.lines import read_lines
from ranker.data.records import (
    Document,
    RankedList,
    check_integer,
    check_number,
    check_text,
)
from ranker.data.words import fold
from ranker.errors import DataError, FieldError


@dataclass(frozen=True)
class ClickLists:
    """The lists of a file that can be learned from, and how many could not."""

    lists: list[RankedList]
    held_out: int  # queries that dev or test has: left out
    without_text: int  # results that the corpus lacks: left out
    short: int  # lists with under two results, or no click, that are left
    num_placed: int = 0  # lists that say where their results were shown
    heaviest: float = 1.0  # largest weight of a document

    def __len__(self) -> int:
        return len(self.lists)

    def __getitem__(self, index: int) -> RankedList:
        return self.lists[index]

    def report(self) -> str:
        """One line for the log."""
        return (
            f"{len(self.lists):,} lists of clicks; left out: {self.held_out:,} queries "
            f"of dev or test, {self.short:,} lists without two results and a click, "
            f"{self.without_text:,} results without a text; {self._weighed()}"
        )

    def _weighed(self) -> str:
        if not self.num_placed:
            return "labels are unchanged"
        worth = "every click counts 1"
        if self.heaviest > 1:
            clicks = np.concatenate([one.weights[one.labels > 0] for one in self.lists])
            size = clicks.sum() ** 2 / (clicks**2).sum()
            worth = (
                f"{len(clicks):,} clicks count up to {self.heaviest:.3g} each and vary "
                f"like {size:,.0f} that count alike"
            )
        return f"{self.num_placed:,} are pages with positions; {worth}"


def load_click_lists(
    path: pathlib.Path,
    corpus: Sequence[Document] | Any,
    held_out: Sequence[RankedList] | Any,
) -> ClickLists:
    """Reads lists of clicks.

    Args:
      path: JSON lines of query, document_ids and labels; of pages also positions and
        weights.
      corpus: documents by row.
      held_out: lists of dev and test, whose queries are never trained on.

    Raises:
      DataError: for a malformed line, naming file, line and field.
    """
    rows = {corpus[row].id: row for row in range(len(corpus))}
    held = {fold(held_out[at].query) for at in range(len(held_out))}
    lists: list[RankedList] = []
    hidden = lost = short = placed = 0
    heaviest = 1.0
    for number, query, documents, labels, positions, weights in _read(path):
        if fold(query) in held:
            hidden += 1
            continue
        kept = [at for at, one in enumerate(documents) if one in rows]
        lost += len(documents) - len(kept)
        worth = np.array([labels[at] for at in kept], np.float32)
        if len(kept) < 2 or not worth.any():
            short += 1
            continue
        placed += bool(positions)
        heaviest = max(heaviest, *weights) if weights else heaviest
        lists.append(
            RankedList(
                f"clicks-{number}",
                query,
                np.array([rows[documents[at]] for at in kept], np.int64),
                worth,
                np.zeros(len(kept), np.float32),
                (),
                np.zeros(0, np.int32),
                positions=np.array([positions[at] for at in kept if positions], "i4"),
                weights=np.array([weights[at] for at in kept if weights], "f4"),
            )
        )
    return ClickLists(lists, hidden, lost, short, placed, heaviest)


_Line = tuple[int, str, list[str], list[float], list[int], list[float]]


def _read(path: pathlib.Path) -> Iterator[_Line]:
    for number, line in read_lines(path):
        try:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise FieldError("line", line, "a JSON object") from error
            if not isinstance(row, dict):
                raise FieldError("line", line, "a JSON object")
            documents, labels = row.get("document_ids"), row.get("labels")
            if not isinstance(documents, list) or not all(
                isinstance(one, str) for one in documents
            ):
                raise FieldError("document_ids", documents, "a list of document ids")
            query = check_text("query", row.get("query"))
            values = [
                check_number("labels", one, low=0.0)
                for one in _beside("labels", labels, documents)
            ]
            positions = [
                check_integer("positions", one, low=1)
                for one in _beside("positions", row.get("positions", []), documents)
            ]
            weights = [
                check_number("weights", one, low=0.0)
                for one in _beside("weights", row.get("weights", []), documents)
            ]
            if not values and documents:
                raise FieldError("labels", labels, f"{len(documents)} numbers")
            yield number, query, documents, values, positions, weights
        except FieldError as error:
            raise DataError(
                f"{path}:{number}: {error}; such files are written by python -m "
                "ranker.online impressions"
            ) from error


def _beside(name: str, found: object, documents: list[str]) -> list[Any]:
    """A list with a number for each document, or none."""
    if not isinstance(found, list) or len(found) not in (0, len(documents)):
        raise FieldError(name, found, f"a list of {len(documents)} numbers")
    return found
