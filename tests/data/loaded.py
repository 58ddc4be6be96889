"""A collection read whole into memory, without tokenizers, for tests to look at."""

import pathlib
import tempfile
from dataclasses import dataclass
from typing import Any

from ranker import config
from ranker.data.click_engine import open_engine
from ranker.data.ranked import SPLITS
from ranker.data.sources import Files


@dataclass
class Loaded:
    documents: list
    lists: dict[str, list]
    clicks: dict[str, list]
    report: dict[str, Any]
    source: Files


def load(folder, **fields):
    """What `prepare` would write of a folder."""
    source = Files(config.Data(path=str(folder), **fields))
    documents = list(source.documents())
    source.bind(documents)
    with (
        tempfile.TemporaryDirectory() as work,
        open_engine(pathlib.Path(work)) as connection,
    ):
        table = source.click_table(connection)
        clicks = {split: list(table.examples(split)) for split in ("train", "dev")}
        lists = {split: list(source.lists(split)) for split in SPLITS}
        report = source.report()
        report["splits"] = {name: one.report() for name, one in source.counts.items()}
    return Loaded(documents, lists, clicks, report, source)
