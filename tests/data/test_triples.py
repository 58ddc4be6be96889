"""Streams of (query, document, score) rows from Parquet files."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ranker.data import triples
from ranker.errors import DataError


def write(path, rows, *, group=7, names=("query", "document", "score")):
    columns = zip(*rows, strict=True)
    table = pa.table(dict(zip(names, map(list, columns), strict=True)))
    pq.write_table(table, path, row_group_size=group)
    return str(path)


def rows_of(count, first=0):
    return [(f"q {i}", f"text {i}", i / 2) for i in range(first, first + count)]


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "b.parquet", rows_of(33, 50))
    write(tmp_path / "a.parquet", rows_of(50), names=("anchor", "passage", "label"))
    return tmp_path


def test_rows_of_several_files_by_number(folder):
    found = triples.Triples(str(folder / "*.parquet"))
    assert len(found) == 83
    for row in (0, 6, 7, 49, 50, 82):
        assert found[row] == triples.Triple(f"q {row}", f"text {row}", row / 2)


def test_an_epoch_has_every_row_once_and_the_next_another_order(folder, monkeypatch):
    monkeypatch.setattr(triples, "_GROUPS", 3)
    order = triples.Shuffled(triples.Triples(str(folder / "*.parquet")), seed=1)
    epochs = [[order.row(83 * e + i) for i in range(83)] for e in range(2)]
    for rows in epochs:
        assert sorted(rows) == list(range(83))
    assert epochs[0] != epochs[1]
    # A function of the place alone: what is read first does not matter.
    again = triples.Shuffled(triples.Triples(str(folder / "*.parquet")), seed=1)
    for index in (120, 3, 82, 83):
        assert again.row(index) == epochs[index // 83][index % 83]
    other = triples.Shuffled(order.triples, seed=2)
    assert [other.row(i) for i in range(83)] != epochs[0]
    assert order[5].query == f"q {epochs[0][5]}"


def test_few_row_groups_are_read_at_a_time(folder, monkeypatch):
    monkeypatch.setattr(triples, "_GROUPS", 2)
    found = triples.Triples(str(folder / "*.parquet"))
    reads = []
    real = pq.ParquetFile.read_row_group

    def counted(self, number, **options):
        reads.append(number)
        return real(self, number, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    order = triples.Shuffled(found, seed=0)
    for index in range(len(found)):
        order[index]
    assert len(reads) == len(found.sizes) > 4  # each group once an epoch
    for begin in found.begins:
        found[int(begin)]
    assert len(reads) >= 2 * len(found.sizes) - 4  # no more than four were kept


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("q", "d", float("nan")), "field 'score': found nan"),
        (("q", "d", None), "field 'score'"),
        (("q", None, 1.0), "field 'document'"),
        ((" ", "d", 1.0), "field 'query'"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, words):
    rows = rows_of(10)
    rows[8] = row
    path = write(tmp_path / "x.parquet", rows)
    found = triples.Triples(path)
    with pytest.raises(DataError) as error:
        found[8]
    assert f"{path}: row 9: " in str(error.value) and words in str(error.value)


def test_what_is_no_file_of_triples(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        triples.Triples(str(tmp_path / "*.parquet"))
    (tmp_path / "x.parquet").write_text("query,document,score\n")
    with pytest.raises(DataError, match="not a Parquet file"):
        triples.Triples(str(tmp_path / "x.parquet"))
    path = write(tmp_path / "y.parquet", rows_of(3), names=("query", "body", "score"))
    with pytest.raises(DataError, match="no column for document among query, body"):
        triples.Triples(path)
    empty = pa.table({name: pa.array([], pa.string()) for name in triples.COLUMNS})
    pq.write_table(empty, tmp_path / "z.parquet")
    with pytest.raises(DataError, match="hold no row"):
        triples.Triples(str(tmp_path / "z.parquet"))


def test_the_order_is_mixed_beyond_a_row_group(folder):
    order = triples.Shuffled(triples.Triples(str(folder / "*.parquet")), seed=0)
    first = np.array([order.row(i) for i in range(14)])
    assert len(set(first // 7)) > 4
