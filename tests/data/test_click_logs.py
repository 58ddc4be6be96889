"""Click logs in every spelling that exports have, against records by hand."""

import datetime
import decimal
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ranker.data import click_logs
from ranker.data.click_logs import open_log
from ranker.data.formats import Skipped
from ranker.data.records import Click
from ranker.errors import ConfigError, DataError


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def read(path, *columns):
    return list(click_logs.read_clicks(open_log(path, columns)))


ROWS = [
    {"query": "cheap flights", "title": "Fly", "summary": "low fares"},
    {
        "query": "cats",
        "title": "Cats",
        "summary": "about cats",
        "document_id": "d7",
        "position": 3,
        "clicked": False,
        "dwell": 12.5,
        "count": 4,
        "time": 1.7e9,
    },
]
CLICKS = [
    Click("cheap flights", "Fly", "low fares"),
    Click("cats", "Cats", "about cats", "d7", 3, False, 12.5, 4, 1.7e9),
]


def test_clicks_json_tsv_and_parquet(tmp_path):
    lines = write(tmp_path / "log.jsonl", *map(json.dumps, ROWS))
    names = list(ROWS[1])
    table = [[str(row.get(name, "")) for name in names] for row in ROWS]
    table[0][names.index("clicked")] = "true"
    tsv = write(tmp_path / "log.tsv", *("\t".join(row) for row in [names, *table]))
    parquet = tmp_path / "log.parquet"
    columns = {name: [row.get(name) for row in ROWS] for name in names}
    pq.write_table(pa.table(columns), parquet)
    for path in (lines, tsv, parquet):
        assert read(path) == CLICKS, path


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"title": "t"}, "field 'query'"),
        ({"query": " ", "title": "t"}, "'query'"),
        ({"query": "q", "dwell": -1}, "'dwell'"),
        ({"query": "q", "count": 0}, "'count'"),
        ({"query": "q", "position": "top"}, "'position'"),
        ({"query": "q", "clicked": "maybe"}, "'clicked'"),
    ],
)
def test_a_bad_click(tmp_path, row, message):
    path = write(tmp_path / "log.jsonl", json.dumps(ROWS[0]), json.dumps(row))
    with pytest.raises(DataError, match=rf"log.jsonl:2: .*{message}"):
        read(path)


def test_bad_click_logs(tmp_path):
    with pytest.raises(DataError, match="not separated by tabs"):
        read(write(tmp_path / "a.tsv", "a,b,c", "1,2,3"))
    with pytest.raises(DataError, match=r"b.tsv:2: .*3 cells"):
        path = write(tmp_path / "b.tsv", "query\ttitle\tsummary", "q\tt")
        read(path)
    with pytest.raises(DataError, match="not a Parquet file"):
        read(write(tmp_path / "c.parquet", "no"))
    with pytest.raises(DataError, match="is .jsonl, .tsv, .csv or .parquet"):
        read(write(tmp_path / "d.xlsx", "no"))
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "e.parquet")


def test_parts_of_a_folder_are_one_log(tmp_path):
    log = tmp_path / "log" / "day=1"
    log.mkdir(parents=True)
    write(log / "part-0.jsonl", json.dumps({"q": "a", "did": "d1", "n": 2}))
    pq.write_table(pa.table({"q": ["b"], "did": [7]}), log / "part-1.parquet")
    write(log / "_SUCCESS", "")
    write(log / ".part-2.jsonl.crc", "x")
    columns = ("query=q", "document_id=did", "count=n")
    with pytest.raises(DataError, match=r"part-1.*calls 'count' 'n', and found the"):
        read(tmp_path / "log", *columns)
    assert read(tmp_path / "log", *columns[:2]) == [
        Click("a", "", "", "d1"),
        Click("b", "", "", "7"),
    ]
    assert len(read(log / "*.jsonl", *columns)) == 1
    with pytest.raises(ConfigError, match=r"'id=did'; it takes OURS=THEIRS"):
        open_log(log, ("id=did",))
    with pytest.raises(DataError, match=r"no such file or folder; .* has log"):
        open_log(tmp_path / "logs")


def test_columns_that_nothing_is_read_from_are_named(tmp_path):
    log = open_log(write(tmp_path / "log.tsv", "\tQuery\ttitle\tuser", "0\ta\tb\tc"))
    assert list(click_logs.read_clicks(log)) == [Click("a", "b", "")]
    assert log.ignored == ["user"]
    path = write(tmp_path / "x.tsv", "query\tproduct_name\tblurb", "a\tb\tc")
    with pytest.raises(DataError, match=r"x\.tsv:1: .*product_name.*blurb.*click_col"):
        read(path)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ('"how to ""fix"" it"', 'how to "fix" it'),
        ('"a\tb"', "a\tb"),
        ('"exact words"', '"exact words"'),  # a user's own quotes
        ('"exact" words', '"exact" words'),
        ('5" nails', '5" nails'),
        ('"', '"'),
        ('"""quoted"""', '"quoted"'),
        ('"two\nlines"', "two\nlines"),
    ],
)
def test_cells_as_csv_writers_quote_them(tmp_path, cell, text):
    path = write(tmp_path / "log.tsv", "query\ttitle", f"{cell}\tx", "b\ty")
    assert [one.query for one in read(path)] == [text, "b"]
    assert [one.title for one in read(path)] == ["x", "y"]


def test_csv_with_commas(tmp_path):
    path = write(tmp_path / "log.csv", "query,title", '"a, b",c', 'd,"e ""f"""')
    assert [(one.query, one.title) for one in read(path)] == [
        ("a, b", "c"),
        ("d", 'e "f"'),
    ]


def test_what_pandas_writes_for_nothing_and_for_times(tmp_path):
    names = "query title clicked dwell position count time".split()
    rows = [
        ["a", "t", "1.0", "", "0", "2.0", "2031-05-04T10:20:30Z"],
        ["a", "t", "True", "nan", "<NA>", "NaN", "2031-05-04 10:20:30.250"],
        ["a", "t", "0.0", "3.5", "7.0", "None", "2031-05-04T12:20:30+02:00"],
        ["a", "t", "f", "\\N", "", "", "2031-05-04"],
    ]
    path = write(tmp_path / "log.tsv", *("\t".join(row) for row in [names, *rows]))
    start = datetime.datetime(2031, 5, 4, tzinfo=datetime.UTC).timestamp()
    noon = start + 10 * 3600 + 20 * 60 + 30
    assert read(path) == [
        Click("a", "t", "", "", 0, True, None, 2, noon),
        Click("a", "t", "", "", None, True, None, 1, noon + 0.25),
        Click("a", "t", "", "", 7, False, 3.5, 1, noon),
        Click("a", "t", "", "", None, False, None, 1, start),
    ]


@pytest.mark.parametrize(
    "time",
    [
        "2031-05-04 10:20:30 UTC",
        "2031/05/04 10:20:30",
        "2031-05-04T10:20:30.000000000Z",
        "20310504T102030",
        "Sun, 04 May 2031 12:20:30 +0200",
        "1935656430",
        "1935656430.0",
    ],
)
def test_times_as_they_are_written(tmp_path, time):
    path = write(tmp_path / "log.tsv", "query\ttitle\ttime", f"a\tt\t{time}")
    [click] = read(path)
    moment = datetime.datetime(2031, 5, 4, 10, 20, 30, tzinfo=datetime.UTC)
    assert click.time == moment.timestamp()


def test_a_time_that_is_none(tmp_path):
    path = write(tmp_path / "log.tsv", "query\ttitle\ttime", "a\tt\tyesterday")
    with pytest.raises(DataError, match="field 'time': found 'yesterday'"):
        read(path)


COLUMNS = {
    "query": ["苹果 ", "b"],
    "title": [None, " x"],
    "document_id": [3, 4],
    "clicked": [1.0, 0.0],
    "dwell": [float("nan"), 2.0],
    "count": [1.0, float("nan")],
    "position": [0, 4],
    "time": [datetime.datetime(2031, 5, 4), None],
    "user": ["u", "v"],
}
ODD = [
    {},
    {"query": ["a", " "]},
    {"query": ["a", "x\0y"]},
    {"query": ["a", "\u200b"]},
    {"query": ["a", None]},
    {"count": [1, 0]},
    {"count": [1.5, 2]},
    {"clicked": ["yes", "no"]},
    {"clicked": [2, 1]},
    {"clicked": [True, None]},
    {"dwell": [-1.0, 2.0]},
    {"dwell": ["", "3"]},
    {"document_id": ["", "a b"]},
    {"document_id": ["nan", "d"]},
    {"document_id": [3.0, float("nan")]},
    {"position": [-1, 2]},
    {"title": ["a", "b\0"]},
    # A warehouse's NUMERIC.
    {"dwell": [decimal.Decimal("1.50"), None], "count": [decimal.Decimal("2"), None]},
    {"count": [decimal.Decimal("2.5"), None]},
]


@pytest.mark.parametrize("changes", ODD)
def test_batches_of_parquet_are_what_the_rows_are(tmp_path, changes):
    """The fast way of clean columns, and the careful one of all others."""
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({**COLUMNS, **changes}), path)
    for on_error in ("stop", "skip"):
        skipped, again = Skipped(), Skipped()
        try:
            rows = list(
                click_logs.read_clicks(
                    open_log(path), on_error=on_error, skipped=skipped
                )
            )
        except DataError as error:
            with pytest.raises(DataError) as found:
                list(click_logs.read_log_batches(open_log(path)))
            assert str(found.value) == str(error)
            continue
        batches = click_logs.read_log_batches(
            open_log(path), on_error=on_error, skipped=again
        )
        table = pa.Table.from_batches(batches, click_logs.SCHEMA)
        expected = pa.Table.from_batches([click_logs.to_batch(rows)])
        assert table.equals(expected)
        assert skipped == again
