"""Data sets of tensorflow-datasets in ArrayRecord: their writers and readers.

Nothing here needs TensorFlow. Records keep the order that they are written in, so a row
number names a record for good. A data set that is not whole is never taken for one that
is: it is written aside and then renamed.
"""

import contextlib
import io
import itertools
import logging
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds
from array_record.python.array_record_module import (
    ArrayRecordReader,
    ArrayRecordWriter,
)
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from ranker.data import tf_examples
from ranker.data.records import ClickExample, Document, RankedList
from ranker.errors import DataError
from ranker.storage import replacing

T = TypeVar("T")
TfRecord = Mapping[str, Any]  # the fields of a record, as tf.train.Example holds them
# One record a group, so that any is read alone; Snappy, since records are short; no
# thread of its own, since handing over a short record costs more than packing it.
_WRITER = "group_size:1,snappy,max_parallelism:1"
_SHARD = 500_000  # records of a file
_READ = 1024  # records at a time
_WRITTEN = 1024  # records that are encoded together

_text_feature = tfds.features.Text
_sequence = tfds.features.Sequence
CORPUS = tfds.features.FeaturesDict(
    {"id": _text_feature(), "title": _text_feature(), "text": _text_feature()}
)
LISTS = tfds.features.FeaturesDict(
    {
        "query_id": _text_feature(),
        "query": _text_feature(),
        "documents": _sequence(np.int64),
        "labels": _sequence(np.float32),
        "first_stage": _sequence(np.float32),
        "judged_ids": _sequence(_text_feature()),
        "judged_grades": _sequence(np.int32),
        "judged": _sequence(np.int64),  # 1 where somebody judged the document
        "teacher": _sequence(np.float32),  # scores that came with the data, or none
    }
)
CLICKS = tfds.features.FeaturesDict(
    {
        "query": _text_feature(),
        "title": _text_feature(),
        "summary": _text_feature(),
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


def _encode(row: Mapping[str, Any]) -> bytes:
    """A record as tf.train.Example holds it."""
    example = tf_example_pb2.Example()  # type: ignore[attr-defined]
    feature = example.features.feature
    for name, value in row.items():
        if isinstance(value, str):
            feature[name].bytes_list.value.append(value.encode())
        elif isinstance(value, int):
            feature[name].int64_list.value.append(value)
        elif isinstance(value, np.ndarray):
            kind = "float_list" if value.dtype.kind == "f" else "int64_list"
            getattr(feature[name], kind).value.extend(value.tolist())
        else:
            feature[name].bytes_list.value.extend(text.encode() for text in value)
    return example.SerializeToString()


def _write(
    features: tfds.features.FeaturesDict,
    folder: pathlib.Path,
    splits: Mapping[str, Iterable[bytes]],
) -> None:
    """Writes each split as it comes; a split without a record is left out.

    Args:
      features: what the records hold.
      folder: of the data set.
      splits: encoded records.
    """
    with _making(features, folder) as (records, sizes):
        for name, rows in splits.items():
            if found := _write_shards(records, folder.name, name, rows):
                sizes[name] = found


@contextlib.contextmanager
def _making(
    features: tfds.features.FeaturesDict, folder: pathlib.Path
) -> Iterator[tuple[pathlib.Path, dict[str, list[int]]]]:
    """A folder for files of records, and a dict for the records of each, by split.

    When both are filled, the data set is described, and takes its name.
    """
    killed = folder.parent.glob(f".{folder.name}.*")  # left by killed runs
    for stale in (folder, *killed):
        shutil.rmtree(stale, ignore_errors=True)
    sizes: dict[str, list[int]] = {}
    with replacing(folder) as partial:
        records = partial / "records"
        records.mkdir(parents=True)
        yield records, sizes
        if not sizes:
            records.rmdir()
            return
        template = tfds.core.ShardedFileTemplate(
            dataset_name=folder.name,
            data_dir=epath.Path(records),
            filetype_suffix="array_record",
        )
        with _quiet():
            tfds.folder_dataset.write_metadata(
                data_dir=records,
                features=features,
                split_infos=[
                    tfds.core.SplitInfo(
                        name=name,
                        shard_lengths=lengths,
                        num_bytes=0,
                        filename_template=template,
                    )
                    for name, lengths in sizes.items()
                ],
                filename_template=template,
                check_data=False,
            )


def _write_shards(
    folder: pathlib.Path, dataset: str, split: str, encoded: Iterable[bytes]
) -> list[int]:
    """Writes a split's files; returns the number of records of each."""
    rows = iter(encoded)
    lengths: list[int] = []
    while (first := next(rows, None)) is not None:
        writer = ArrayRecordWriter(str(folder / f"{split}.{len(lengths)}"), _WRITER)
        lengths.append(0)
        for row in itertools.chain([first], itertools.islice(rows, _SHARD - 1)):
            writer.write(row)
            lengths[-1] += 1
        writer.close()
    for number in range(len(lengths)):
        shard = _shard_name(dataset, split, number, len(lengths))
        (folder / f"{split}.{number}").rename(folder / shard)
    return lengths


def _shard_name(dataset: str, split: str, number: int, count: int) -> str:
    return f"{dataset}-{split}.array_record-{number:05d}-of-{count:05d}"


class Records(Generic[T]):
    """Random access to the records of a split; opened again where it is unpickled.

    The fields are taken out of a record's bytes by hand: what tensorflow-datasets does
    for features of any kind takes several times as long, and accelerators would wait.
    """

    def __init__(
        self, folder: pathlib.Path, split: str, decode: Callable[[TfRecord], T]
    ):
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


def _text(row: TfRecord, field: str) -> str:
    return row[field].bytes_list.value[0].decode()


def _integers(row: TfRecord, field: str, dtype: type[np.integer]) -> np.ndarray:
    # A slice is a list, which numpy reads twice as fast.
    return np.array(row[field].int64_list.value[:], dtype)


def _floats(row: TfRecord, field: str) -> np.ndarray:
    return np.array(row[field].float_list.value[:], np.float32)


def _document(row: TfRecord) -> Document:
    return Document(_text(row, "id"), _text(row, "title"), _text(row, "text"))


def _list(row: TfRecord) -> RankedList:
    return RankedList(
        query_id=_text(row, "query_id"),
        query=_text(row, "query"),
        documents=_integers(row, "documents", np.int64),
        labels=_floats(row, "labels"),
        first_stage=_floats(row, "first_stage"),
        judged_ids=tuple(name.decode() for name in row["judged_ids"].bytes_list.value),
        judged_grades=_integers(row, "judged_grades", np.int32),
        judged=_integers(row, "judged", np.int64).astype(bool),
        teacher=_floats(row, "teacher"),
    )


def _click(row: TfRecord) -> ClickExample:
    return ClickExample(
        _text(row, "query"),
        _text(row, "title"),
        _text(row, "summary"),
        row["count"].int64_list.value[0],
    )


def write_corpus(folder: pathlib.Path, documents: Iterable[Document]) -> None:
    """Writes the documents; row i is the i-th."""
    records = (
        record
        for batch in _batches(documents, _DOCUMENTS)
        for record in _encode_batch(batch)
    )
    _write(CORPUS, folder, {"documents": records})


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
            "judged": one.judged.astype(np.int64),
            "teacher": one.teacher,
        }

    encoded = {
        name: (_encode(row(one)) for one in lists) for name, lists in splits.items()
    }
    _write(LISTS, folder, encoded)


# Large, since a thousand texts may be gigabytes.
_DOCUMENTS = pa.schema([(name, pa.large_string()) for name in ("id", "title", "text")])
_EXAMPLES = pa.schema(
    [
        ("query", pa.large_string()),
        ("title", pa.large_string()),
        ("summary", pa.large_string()),
        ("count", pa.int64()),
    ]
)


def click_batches(examples: Iterable[ClickExample]) -> Iterator[pa.RecordBatch]:
    """Click examples as `write_clicks` takes them."""
    return _batches(examples, _EXAMPLES)


def _batches(records: Iterable[Any], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    records = iter(records)
    while some := list(itertools.islice(records, _WRITTEN)):
        columns = [
            pa.array([getattr(one, column.name) for one in some], column.type)
            for column in schema
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _encode_batch(batch: pa.RecordBatch) -> list[bytes]:
    return tf_examples.encode(dict(zip(batch.schema.names, batch.columns, strict=True)))


def write_clicks(
    folder: pathlib.Path, splits: Mapping[str, Iterable[pa.RecordBatch]]
) -> None:
    """Writes the click examples of each split, in order.

    Args:
      folder: of the data set.
      splits: batches with the columns query, title, summary and count.
    """
    encoded = {
        name: (record for batch in batches for record in _encode_batch(batch))
        for name, batches in splits.items()
    }
    _write(CLICKS, folder, encoded)


def write_click_file(path: pathlib.Path, examples: Iterable[ClickExample]) -> None:
    """Writes one file of click examples, for `take_clicks`."""
    writer = ArrayRecordWriter(str(path), _WRITER)
    for batch in click_batches(examples):
        for record in _encode_batch(batch):
            writer.write(record)
    writer.close()


def read_click_file(
    path: pathlib.Path, places: Sequence[int]
) -> Iterator[ClickExample]:
    """Some of the click examples of one file; the others are not read."""
    reader = ArrayRecordReader(
        str(path), options="readahead_buffer_size:0,max_parallelism:0"
    )
    try:
        for begin in range(0, len(places), _READ):
            for record in reader.read(list(places[begin : begin + _READ])):
                example = tf_example_pb2.Example.FromString(record)  # type: ignore[attr-defined]
                yield _click(example.features.feature)
    finally:
        reader.close()


def take_clicks(
    folder: pathlib.Path, splits: Mapping[str, Sequence[tuple[pathlib.Path, int]]]
) -> None:
    """Makes a data set of files of `write_click_file`, which are moved, not read.

    Args:
      folder: of the data set.
      splits: files of each split, in order, with the number of their records.
    """
    with _making(CLICKS, folder) as (records, sizes):
        for split, files in splits.items():
            for number, (path, count) in enumerate(files):
                name = _shard_name(folder.name, split, number, len(files))
                path.rename(records / name)
                sizes.setdefault(split, []).append(count)


def load_corpus(folder: pathlib.Path) -> Records[Document]:
    """Documents by row."""
    return Records(folder, "documents", _document)


def load_lists(folder: pathlib.Path, split: str) -> Records[RankedList]:
    """Lists of a split by row."""
    return Records(folder, split, _list)


def load_clicks(folder: pathlib.Path, split: str) -> Records[ClickExample]:
    """Click examples of a split by row."""
    return Records(folder, split, _click)
