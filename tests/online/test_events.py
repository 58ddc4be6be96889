"""Reading logs: every format alike, and what is wrong named by file, line and field."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ranker.errors import DataError
from ranker.online import events, pages
from ranker.online.pages import Contradictions, PageRules, View

HEADER = "time\tuser\tpage\tevent\tquery\tarm\tdocument_id\tposition\tdwell"
ROWS = [
    "1000\tu1\tp1\tpage\tgreen tea\tA\t\t\t",
    "1005\tu1\tp1\tclick\t\t\td1\t1\t40",
    "2000\tu2\tp2\tpage\tblack tea\tB\t\t\t",
]


def _write(folder, rows, header=HEADER, name="log.tsv"):
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def _read(path, **more):
    with events.read_log([path], fields=pages.FIELDS, **more) as log:
        rows = log.connection.execute(
            'SELECT time, click, "query", arm, position, dwell FROM '
            f"{log.rows(0)} ORDER BY time"
        ).fetchall()
        return rows, log.facts, log.has


def _dicts():
    names = HEADER.split("\t")
    for row in ROWS:
        cells = zip(names, row.split("\t"), strict=True)
        yield {name: cell for name, cell in cells if cell}


def test_every_format_gives_the_same_rows(tmp_path):
    tsv = _write(tmp_path, ROWS)
    expected = _read(tsv)[0]
    assert expected == [
        (1000.0, False, "green tea", "A", None, None),
        (1005.0, True, None, None, 1, 40.0),
        (2000.0, False, "black tea", "B", None, None),
    ]
    zipped = tmp_path / "log.tsv.gz"
    zipped.write_bytes(gzip.compress(tsv.read_bytes(), mtime=0))
    lines = tmp_path / "log.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n\n" for row in _dicts()))
    typed = [
        {
            name: float(cell)
            if name in ("time", "dwell")
            else int(cell)
            if name == "position"
            else cell
            for name, cell in row.items()
        }
        for row in _dicts()
    ]
    parquet = tmp_path / "log.parquet"
    table = {name: [row.get(name) for row in typed] for name in HEADER.split("\t")}
    pq.write_table(pa.table(table), parquet)
    numbers = tmp_path / "typed.jsonl"
    numbers.write_text("".join(json.dumps(row) + "\n" for row in typed))
    for path in (zipped, lines, parquet, numbers):
        assert _read(path)[0] == expected, path


def test_times_are_read_as_numbers_iso_and_timestamps(tmp_path):
    rows = [
        "2026-01-01T00:00:00Z\tu1\tp1\tpage\tq\tA\t\t\t",
        "2026-01-01T01:00:00+01:00\tu2\tp2\tpage\tq\tA\t\t\t",
        "1767225600\tu3\tp3\tpage\tq\tA\t\t\t",
    ]
    assert {row[0] for row in _read(_write(tmp_path, rows))[0]} == {1767225600.0}
    path = tmp_path / "log.parquet"
    stamps = pa.array([1767225600_000], pa.timestamp("ms"))
    pq.write_table(
        pa.table({"time": stamps, "user": [7], "page": [1], "event": ["page"]}), path
    )
    assert _read(path)[0][0][0] == 1767225600.0


def test_other_column_names_and_a_clicked_column(tmp_path):
    path = _write(
        tmp_path,
        ["1\tu\tp\td1\t1\t1", "1\tu\tp\td2\t2\t0"],
        "ts\tcookie\tpage_id\tdid\trank\tclicked",
    )
    rows, facts, has = _read(path, mapping={"user": "cookie", "document_id": "did"})
    assert (facts["rows"], facts["clicks"]) == (3, 1)
    assert [row[1] for row in rows] == [False, False, True] and "document" in has


@pytest.mark.parametrize(
    ("row", "field", "found"),
    [
        ("x\tu\tp\tpage\tq\tA\t\t\t", "time", "'x'"),
        ("-1\tu\tp\tpage\tq\tA\t\t\t", "time", "'-1'"),
        ("1767225600000\tu\tp\tpage\tq\tA\t\t\t", "time", "1,000"),
        ("nan\tu\tp\tpage\tq\tA\t\t\t", "time", "'nan'"),
        ("1\t\tp\tpage\tq\tA\t\t\t", "user", "nothing"),
        ("1\tu\t\tpage\tq\tA\t\t\t", "page", "nothing"),
        ("1\tu\tp\tview\tq\tA\t\t\t", "event", "'view'"),
        ("1\tu\tp\tclick\tq\tA\td\t0\t", "position", "'0'"),
        ("1\tu\tp\tclick\tq\tA\td\t1.5\t", "position", "'1.5'"),
        ("1\tu\tp\tclick\tq\tA\td\t1\tlong", "dwell", "'long'"),
        ("1\tu\tp\tclick\tq\tA\td\t1\tinf", "dwell", "'inf'"),
    ],
)
@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_a_bad_cell_is_named(tmp_path, row, field, found, kind):
    if kind == "tsv":
        path = _write(tmp_path, [*ROWS, "", row, ROWS[0]])
    else:
        path = tmp_path / "log.jsonl"
        names = HEADER.split("\t")
        bad = dict(zip(names, row.split("\t"), strict=True))
        lines = [json.dumps(one) for one in _dicts()]
        path.write_text("\n".join(["", *lines, "", json.dumps(bad), lines[0]]))
    with pytest.raises(DataError) as error:
        _read(path)
    assert f"{path.name}:6: field {field!r}" in str(error.value)
    assert found in str(error.value)


def test_a_bad_row_of_parquet_is_named(tmp_path):
    path = tmp_path / "log.parquet"
    table = {
        "time": [1.0, 2.0],
        "user": ["u", "u"],
        "page": ["p", None],
        "event": ["page", "page"],
    }
    pq.write_table(pa.table(table), path)
    with pytest.raises(DataError, match="row 2: field 'page': found nothing"):
        _read(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("log.tsv", b"", "is empty"),
        ("log.tsv", (HEADER + "\n").encode(), "no row below"),
        ("log.tsv", b"time,user,page,event\n1,u,p,page\n", "between tabs"),
        ("log.tsv", b"time\tuser\tpage\n1\tu\tp\n", "no column 'event'"),
        ("log.tsv", b"time\ttime\tuser\n", "'time' twice"),
        ("log.tsv", "time\tuser\n".encode("utf-16"), "UTF-16"),
        ("log.tsv", (HEADER + "\n1\tu\tp\n").encode(), ":2: found 3 cells"),
        ("log.tsv", HEADER.encode() + b"\n1\t\xff\tp\tpage\t\t\t\t\t\n", ":2: is not"),
        ("log.jsonl", b'{"time": 1, "user": "u"', "log.jsonl:1: found"),
        ("log.jsonl", b"[1]\n", "log.jsonl:1: found '[1]'"),
        ("log.parquet", b"PAR1 and nothing", "not a Parquet file"),
        ("log.csv", b"a\n", "is .tsv, .jsonl or .parquet"),
        (
            "log.tsv.gz",
            gzip.compress(b"time\tuser" * 999, mtime=0)[:30],
            "cannot be read",
        ),
    ],
)
def test_files_that_are_no_log(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        _read(path)
    assert said in str(error.value) and name in str(error.value)


def test_missing_files_and_columns_say_what_is_there(tmp_path):
    path = _write(tmp_path, ROWS)
    with pytest.raises(DataError, match="no such file"):
        _read(tmp_path / "other.tsv")
    with pytest.raises(DataError, match="no file has such a name"):
        _read(tmp_path / "*.parquet")
    with pytest.raises(DataError, match="no column 'ts', which should be 'time'"):
        _read(path, mapping={"time": "ts"})
    with pytest.raises(DataError, match="no such field"):
        _read(path, mapping={"when": "time"})
    with pytest.raises(DataError, match="asked for as a segment"):
        _read(path, more=("device",))


def test_a_log_in_buckets_is_the_same_log(tmp_path, monkeypatch):
    rows = [
        f"{1000 + n}\tu{n % 97}\tp{n}\tpage\tq\t{'AB'[n % 97 % 2]}\t\t\t"
        for n in range(500)
    ]
    path = _write(tmp_path, rows)
    monkeypatch.setattr(events, "ROWS_A_BUCKET", 60)
    with events.read_log([path], fields=pages.FIELDS) as log:
        assert log.buckets > 2
        sizes = [
            log.connection.execute(f"SELECT count(*) FROM {log.rows(b)}").fetchall()
            for b in range(log.buckets)
        ]
        users = [
            {
                u
                for (u,) in log.connection.sql(
                    f"SELECT u FROM {log.rows(b)}"
                ).fetchall()
            }
            for b in range(log.buckets)
        ]
    assert sum(size for ((size,),) in sizes) == 500
    assert sum(map(len, users)) == len(set().union(*users)) == 97


# --- contradictions ---


def _contradictions(tmp_path, rows, rules=None, header=HEADER):
    found = Contradictions()
    with events.read_log([_write(tmp_path, rows, header)], fields=pages.FIELDS) as log:
        view = View(arms=("A", "B"))
        walked = list(pages.walk(log, rules or PageRules(), found, view))
    return found.summary(), sum(len(bucket.pages["u"]) for bucket in walked)


@pytest.mark.parametrize(
    ("kind", "rows", "kept", "example"),
    [
        ("click_without_page", ["9\tu1\tp9\tclick\t\t\td\t1\t"], 2, "page 'p9'"),
        ("page_without_arm", ["9\tu3\tp3\tpage\tq\t\t\t\t"], 2, "page 'p3'"),
        ("user_in_two_arms", ["9\tu1\tp3\tpage\tq\tB\t\t\t"], 1, "user 'u1'"),
        (
            "position_twice",
            ["9\tu3\tp3\tpage\tq\tA\td1\t1\t", "9\tu3\tp3\tpage\tq\tA\td2\t1\t"],
            2,
            "page 'p3'",
        ),
        (
            "position_twice",
            ["1006\tu1\tp1\tclick\t\t\td7\t1\t"],
            1,
            "page 'p1'",
        ),
        ("page_twice", ["9000\tu1\tp1\tpage\tq\tA\t\t\t"], 2, "page 'p1'"),
        (
            "click_not_shown",
            [
                "9\tu3\tp3\tpage\tq\tA\td1\t1\t",
                "10\tu3\tp3\tclick\tq\tA\td2\t2\t",
            ],
            3,
            "page 'p3'",
        ),
        ("clock_jump", ["900\tu1\tp1\tclick\t\t\td2\t2\t"], 2, "page 'p1'"),
        ("negative_dwell", ["1010\tu1\tp1\tclick\t\t\td2\t2\t-3"], 2, "page 'p1'"),
        (
            "refresh",
            ["5000\tu3\tp3\tpage\tq\tA\t\t\t", "5001\tu3\tp4\tpage\tQ \tA\t\t\t"],
            3,
            "page 'p3'",
        ),
    ],
)
def test_contradictions_are_named_and_counted(tmp_path, kind, rows, kept, example):
    found, left = _contradictions(tmp_path, [*ROWS, *rows])
    assert list(found) == [kind] and found[kind]["count"] == 1, found
    assert found[kind]["example"] == example
    assert left == kept
    assert found[kind]["done"] and found[kind]["advice"]


def test_a_bot_is_left_out(tmp_path):
    rows = [f"{n * 5}\tbot\tx{n}\tpage\tq{n}\tA\t\t\t" for n in range(10_000)]
    found, left = _contradictions(tmp_path, [*ROWS, *rows])
    assert found["bot"]["count"] == 1 and found["bot"]["example"] == "user 'bot'"
    assert left == 2


def test_a_sound_log_has_no_contradiction(tmp_path):
    assert _contradictions(tmp_path, ROWS) == ({}, 2)


def test_pages_by_hand(tmp_path):
    """Change, sessions and a dwell taken from the next event, as the rules say."""
    header = HEADER.rsplit("\t", 1)[0]
    rows = [
        "1000\tu\tp1\tpage\tgreen tea\tA\t\t",
        "1010\tu\tp1\tclick\t\t\td\t2",  # 20 s until the next page
        "1030\tu\tp2\tpage\tgreen tea cup\tA\t\t",
        "1040\tu\tp2\tclick\t\t\te\t1",  # 60 s: satisfied
        "1100\tu\tp3\tpage\tgreen cup\tA\t\t",
        "9000\tu\tp4\tpage\tcup\tA\t\t",  # another session
        "9010\tu\tp4\tclick\t\t\tf\t3",  # nothing follows: dwell not known
    ]
    found = Contradictions()
    with events.read_log([_write(tmp_path, rows, header)], fields=pages.FIELDS) as log:
        (bucket,) = pages.walk(log, PageRules(), found)
    names = "changed session clicks known dwell satisfied wait top".split()
    kept = np.stack([bucket.pages[name] for name in names], axis=1)
    nan = np.nan
    expected = [
        [1, 1, 1, 1, 20.0, 0, 10.0, 2],
        [0, 1, 1, 1, 60.0, 1, 10.0, 1],
        [0, 1, 0, 0, 0.0, 0, nan, nan],
        [0, 2, 1, 0, 0.0, 0, 10.0, 3],
    ]
    np.testing.assert_array_equal(kept, expected)
    assert not found.counts
