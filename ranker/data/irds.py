"""Collections by their names in ir_datasets, as `irds:NAME`.

`irds:beir/scifact/test` is the test split of a collection; several splits are named one
by one, `irds:train=beir/scifact/train,test=beir/scifact/test`. Documents are those of
the test split. What ir_datasets has on disk is read there.
"""

from collections.abc import Iterator
from typing import Any

from ranker.data.collections import SPLITS, Collection, Judgements
from ranker.data.formats import to_document, to_query
from ranker.data.records import Document
from ranker.errors import ConfigError, DataError, FieldError


def open_irds(names: str) -> Collection:
    """The collection of one name, or of one for each split.

    Raises:
      ConfigError: for a split that there is not, or where ir_datasets is missing.
      DataError: for a name that it does not know, or data that it cannot give.
    """
    parts = names.split(",") if "=" in names else [f"test={names}"]
    found: dict[str, Any] = {}
    for part in parts:
        split, _, name = part.partition("=")
        if split not in SPLITS or not name:
            raise ConfigError(
                f"data.path has {part!r}; it takes irds:NAME, or "
                "irds:train=NAME,dev=NAME,test=NAME"
            )
        found[split] = _load(name)
    if "test" not in found:
        raise ConfigError(f"data.path {names!r} names no test split")
    queries: dict[str, str] = {}
    qrels: dict[str, Judgements] = {}
    for split, dataset in found.items():
        for row in _rows(dataset, "queries"):
            query = to_query(row)
            queries[query.id] = query.text
        grades = qrels.setdefault(split, {})
        for row in _rows(dataset, "qrels"):
            grades.setdefault(row["query_id"], {})[row["doc_id"]] = row["relevance"]
    return Collection(
        documents=lambda seen: _documents(found["test"], seen),
        queries=queries,
        qrels=qrels,
    )


def _load(name: str) -> Any:
    try:
        import ir_datasets
    except ImportError as error:
        raise ConfigError(
            f"data.path is irds:{name}, and ir_datasets is missing; "
            'pip install "ranker[eval]"'
        ) from error
    try:
        return ir_datasets.load(name)
    except Exception as error:  # it raises many kinds
        raise DataError(f"irds:{name}: ir_datasets cannot load it: {error}") from error


def _rows(dataset: Any, kind: str) -> Iterator[dict[str, Any]]:
    """The namedtuples of a part, as named fields."""
    try:
        if not getattr(dataset, f"has_{kind}")():
            raise ValueError(f"it has no {kind}")
        for one in getattr(dataset, f"{kind}_iter")():
            yield one._asdict()
    except Exception as error:  # a download that fails, a licence, a damaged file
        raise DataError(
            f"irds: the {kind} of {dataset} cannot be read: {error}"
        ) from error


def _documents(dataset: Any, seen: dict[str, int]) -> Iterator[Document]:
    for row in _rows(dataset, "docs"):
        try:
            document = to_document(row)
        except FieldError as error:
            # Public collections have empty documents; nobody can mend them here.
            if "not empty" in str(error):
                continue
            raise DataError(f"irds: {dataset}: {error}") from error
        if document.id not in seen:
            seen[document.id] = len(seen)
            yield document
