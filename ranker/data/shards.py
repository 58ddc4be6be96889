"""Click examples that another engine wrote to files, in the order of one machine.

`prepare` takes the files over unchanged: it reads what `beam` has noted of each, and
the records that a tokenizer is trained on.
"""

import dataclasses
import json
import pathlib
import shutil
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ranker.data import clicks, datasets
from ranker.data.clicks import ClickCounts, Digest
from ranker.data.records import ClickExample
from ranker.errors import DataError
from ranker.storage import open_path

SUMMARY = "clicks.json"
_FIGURES = 50  # positions in the report


def doubt(query: str) -> int:
    """More tokens than a tokenizer makes of a query, what surrounds it aside.

    At most one a byte, of the text as it is or as it is normalised.
    """
    if query.isascii():
        return len(query)
    forms = (unicodedata.normalize(form, query) for form in ("NFKC", "NFKD"))
    return max(len(one.encode()) for one in (query, *forms))


def doubtful_from(lengths: Sequence[int]) -> int:
    """What `doubt` of a query calls for a look at its tokens, whatever surrounds it.

    Args:
      lengths: of a row, of each role.
    """
    return max(1, min(lengths) // 2)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of examples, and what can be known without reading it.

    Attributes:
      split: train or dev.
      number: of the file within the split.
      name: of the file.
      records: examples in it.
      digest: of its examples, in any order.
      doubtful: queries that may be too long; None: too many to list.
    """

    split: str
    number: int
    name: str
    records: int
    digest: str
    doubtful: tuple[str, ...] | None

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return dataclasses.asdict(self)


class ShardedClicks:
    """Click examples in files; the twin of `click_engine.ClickTable`."""

    def __init__(self, output: str, folder: pathlib.Path):
        """Copies the files from where the workers wrote them.

        Args:
          output: folder of `beam.WorkerSettings`.
          folder: local, that they are copied to.

        Raises:
          DataError: what a worker found wrong with the log.
        """
        told = json.loads(open_path(output).joinpath(SUMMARY).read_text())
        self.notes: list[Mapping[str, Any]] = told["notes"]
        problems = sorted(one["problem"] for one in self.notes if "problem" in one)
        if problems:
            raise DataError(problems[0])
        folder.mkdir(parents=True, exist_ok=True)
        found = [Shard(**one) for one in told["shards"]]
        self.shards = {
            split: sorted(
                (one for one in found if one.split == split), key=lambda s: s.number
            )
            for split in ("train", "dev")
        }
        self._folder, self._a_query = folder, told["a_query"]
        for one in found:
            with (
                open_path(output).joinpath(one.name).open("rb") as source,
                (folder / one.name).open("wb") as target,
            ):
                shutil.copyfileobj(source, target)
        self.counts, self.shown = _counts(told, self.shards), _figures(told["tallies"])

    def count(self, split: str) -> int:
        """Examples of a split."""
        return self.counts.examples[split]

    def clicks_a_query(self) -> dict[str, int]:
        """How many queries have 1, 2, ... examples; those from 20 on are one."""
        return dict(sorted(self._a_query.items(), key=lambda one: int(one[0])))

    def files(self, split: str) -> list[tuple[pathlib.Path, int]]:
        """Files of a split, in order, and the records of each."""
        return [(self._folder / one.name, one.records) for one in self.shards[split]]

    def digest(self, split: str) -> str:
        """Of the examples of a split."""
        result = Digest()
        for one in self.shards[split]:
            result.join(one.digest)
        return result.hexdigest()

    def doubtful(self, split: str) -> list[str] | None:
        """Queries that may be too long for a row; None: all must be looked at."""
        result: list[str] = []
        for one in self.shards[split]:
            if one.doubtful is None:
                return None
            result += one.doubtful
        return result

    def examples(self, split: str, *, every: int = 1) -> Iterator[ClickExample]:
        """Examples of a split, in order; with `every`, one of so many, read alone."""
        begin = 0
        for path, records in self.files(split):
            first = -begin % every
            yield from datasets.read_click_file(path, range(first, records, every))
            begin += records

    def batches(self, split: str) -> Iterator[pa.RecordBatch]:
        """All of a split, in order, as columns: query, title, summary and count."""
        return datasets.click_batches(self.examples(split))


def _counts(
    told: Mapping[str, Any], shards: Mapping[str, Sequence[Shard]]
) -> ClickCounts:
    tallies = told["tallies"]
    examples = {
        split: sum(one.records for one in found) for split, found in shards.items()
    }
    dropped = {reason: tallies.get(reason, 0) for reason in clicks.REASONS}
    dropped[clicks.CAPPED] = told["pairs"] - sum(examples.values())
    return ClickCounts(
        rows=tallies.get("rows", 0),
        dropped=dropped,
        by=told["count_by"],
        **{name: tallies.get(name, 0) for name in ("clicked", "counted", "timed")},
        merged=tallies.get("kept", 0) - told["pairs"],
        held_out=tallies.get(clicks.HELD_OUT, 0),
        held_out_queries=told["held_out_queries"],
        examples=examples,
    )


def _figures(tallies: Mapping[str, int]) -> dict[str, Any]:
    places = sorted(
        int(name.split("/")[1])
        for name in tallies
        if name.startswith("position/") and name.endswith("/rows")
    )
    return {
        "positions": {
            str(place): {
                "rows": tallies[f"position/{place}/rows"],
                "clicked": tallies.get(f"position/{place}/clicked", 0),
            }
            for place in places[:_FIGURES]
        }
    }
