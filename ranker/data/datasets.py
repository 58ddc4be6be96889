"""tensorflow-datasets builders that write records to ArrayRecord, and their readers.

Nothing here needs TensorFlow. Records keep the order that they are written in, so a row
number names a record for good. A data set that is not whole is never taken for one that
is: it is written aside and then renamed.
"""

import contextlib
import io
import logging
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from ranker.data.records import ClickExample, Document, RankedList
from ranker.errors import DataError
from ranker.storage import replacing

T = TypeVar("T")
Row = Mapping[str, Any]  # the fields of a record, as tf.train.Example holds them


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes the records that it is given; the subclasses say what they look like."""

    VERSION = tfds.core.Version("1.0.0")
    FEATURES: tfds.features.FeaturesDict

    def __init__(self, *, splits: Mapping[str, Iterable[dict[str, Any]]], **kwargs):
        self._records = splits
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, features=self.FEATURES, disable_shuffling=True
        )

    def _split_generators(self, dl_manager) -> dict[str, Any]:
        del dl_manager
        return {name: enumerate(rows) for name, rows in self._records.items()}

    def _generate_examples(self, *args) -> Any:
        raise AssertionError("splits are given as iterators")


class Corpus(_Builder):
    """Documents; the row number is the order of writing."""

    FEATURES = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "title": tfds.features.Text(),
            "text": tfds.features.Text(),
        }
    )


class Lists(_Builder):
    """Queries with their candidates."""

    FEATURES = tfds.features.FeaturesDict(
        {
            "query_id": tfds.features.Text(),
            "query": tfds.features.Text(),
            "documents": tfds.features.Sequence(np.int64),
            "labels": tfds.features.Sequence(np.float32),
            "first_stage": tfds.features.Sequence(np.float32),
            "judged_ids": tfds.features.Sequence(tfds.features.Text()),
            "judged_grades": tfds.features.Sequence(np.int32),
        }
    )


class Clicks(_Builder):
    """Continued pre-training examples."""

    FEATURES = tfds.features.FeaturesDict(
        {
            "query": tfds.features.Text(),
            "title": tfds.features.Text(),
            "summary": tfds.features.Text(),
            "count": np.int64,
        }
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """tensorflow-datasets neither draws bars nor logs while it writes."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        tfds.enable_progress_bar()


def _write(
    builder: type[_Builder],
    folder: pathlib.Path,
    splits: Mapping[str, Iterable[dict[str, Any]]],
) -> None:
    killed = folder.parent.glob(f".{folder.name}.*")  # left behind by killed runs
    for stale in (folder, *killed):
        shutil.rmtree(stale, ignore_errors=True)
    filled = {}
    for name, rows in splits.items():
        rows = iter(rows)
        first = next(rows, None)
        if first is not None:  # tensorflow-datasets refuses an empty split
            filled[name] = _chain(first, rows)
    with replacing(folder) as partial:
        partial.mkdir(parents=True)
        if filled:
            with _quiet():
                maker = builder(splits=filled, data_dir=str(partial / "tfds"))
                maker.download_and_prepare()
            pathlib.Path(maker.data_path).rename(partial / "records")


def _chain(first: T, rest: Iterator[T]) -> Iterator[T]:
    yield first
    yield from rest


class Records(Generic[T]):
    """Random access to the records of a split; opened again where it is unpickled.

    The fields are taken out of a record's bytes by hand: what tensorflow-datasets does
    for features of any kind takes several times as long, and accelerators would wait.
    """

    def __init__(self, folder: pathlib.Path, split: str, decode: Callable[[Row], T]):
        """Opens `folder`; a split that was written empty has no record."""
        self._arguments = (folder, split, decode)
        self._decode = decode
        if not folder.is_dir():
            raise DataError(f"{folder}: no such data set; run the prepare stage again")
        self._source: Any = ()
        if (folder / "records").is_dir():
            with _quiet(), self._damage():
                reader: Any = tfds.builder_from_directory(str(folder / "records"))
                if split in reader.info.splits:
                    self._source = reader.as_data_source(
                        split,
                        deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
                    )

    def __reduce__(self):
        return Records, self._arguments

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> T:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        with self._damage():
            record = self._source[index % len(self)]
            example = tf_example_pb2.Example.FromString(record)  # type: ignore[attr-defined]
            return self._decode(example.features.feature)

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        """ArrayRecord checks what it reads, and tells by exceptions of many kinds."""
        try:
            yield
        except Exception as error:
            folder = self._arguments[0]
            raise DataError(
                f"{folder}: is damaged ({error}); delete {folder.parent} to have the "
                "data prepared again"
            ) from error

    def __iter__(self) -> Iterator[T]:
        return (self[index] for index in range(len(self)))


def _text(row: Row, field: str) -> str:
    return row[field].bytes_list.value[0].decode()


def _integers(row: Row, field: str, dtype: type[np.integer]) -> np.ndarray:
    return np.array(row[field].int64_list.value, dtype)


def _floats(row: Row, field: str) -> np.ndarray:
    return np.array(row[field].float_list.value, np.float32)


def _document(row: Row) -> Document:
    return Document(_text(row, "id"), _text(row, "title"), _text(row, "text"))


def _list(row: Row) -> RankedList:
    return RankedList(
        query_id=_text(row, "query_id"),
        query=_text(row, "query"),
        documents=_integers(row, "documents", np.int64),
        labels=_floats(row, "labels"),
        first_stage=_floats(row, "first_stage"),
        judged_ids=tuple(name.decode() for name in row["judged_ids"].bytes_list.value),
        judged_grades=_integers(row, "judged_grades", np.int32),
    )


def _click(row: Row) -> ClickExample:
    return ClickExample(
        _text(row, "query"),
        _text(row, "title"),
        _text(row, "summary"),
        row["count"].int64_list.value[0],
    )


def write_corpus(folder: pathlib.Path, documents: Iterable[Document]) -> None:
    """Writes the documents; row i is the i-th."""
    rows = ({"id": one.id, "title": one.title, "text": one.text} for one in documents)
    _write(Corpus, folder, {"documents": rows})


def write_lists(
    folder: pathlib.Path, splits: Mapping[str, Iterable[RankedList]]
) -> None:
    """Writes the lists of each split, in order."""

    def row(one: RankedList) -> dict[str, Any]:
        return {
            "query_id": one.query_id,
            "query": one.query,
            "documents": one.documents,
            "labels": one.labels,
            "first_stage": one.first_stage,
            "judged_ids": list(one.judged_ids),
            "judged_grades": one.judged_grades,
        }

    _write(Lists, folder, {name: map(row, lists) for name, lists in splits.items()})


def write_clicks(
    folder: pathlib.Path, splits: Mapping[str, Iterable[ClickExample]]
) -> None:
    """Writes the click examples of each split, in order."""

    def row(one: ClickExample) -> dict[str, Any]:
        return {
            "query": one.query,
            "title": one.title,
            "summary": one.summary,
            "count": one.count,
        }

    _write(Clicks, folder, {name: map(row, rows) for name, rows in splits.items()})


def load_corpus(folder: pathlib.Path) -> Records[Document]:
    """Documents by row."""
    return Records(folder, "documents", _document)


def load_lists(folder: pathlib.Path, split: str) -> Records[RankedList]:
    """Lists of a split by row."""
    return Records(folder, split, _list)


def load_clicks(folder: pathlib.Path, split: str) -> Records[ClickExample]:
    """Click examples of a split by row."""
    return Records(folder, split, _click)
