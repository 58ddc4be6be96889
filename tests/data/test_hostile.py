"""Files from strangers: every reader meets each with records or with a sentence.

Here 5,000 inputs are tried. 100,000 and more, spread over the readers alike:

    RANKER_FUZZ=100000 python -m pytest -n 0 tests/data/test_hostile.py
"""

import dataclasses
import datetime
import gzip
import io
import json
import os
import pathlib
import resource
import subprocess
import sys
import textwrap
import time
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ranker import config, errors, manifests, storage
from ranker.data import click_logs, formats, trec
from ranker.data.clicks import clicks_to_examples
from ranker.data.datasets import click_batches, load_clicks, write_clicks
from ranker.data.lines import MAX_LINE
from ranker.data.records import Click, check_number
from ranker.errors import DataError
from ranker.scoring import job as jobs
from ranker.scoring.pairs import WorldPairs
from ranker.scoring.proof import verify
from ranker.scoring.status import read_status, status_lines
from ranker.serving import contract

ROOT = pathlib.Path(__file__).resolve().parents[2]
INPUTS = int(os.environ.get("RANKER_FUZZ", "5000"))
SECONDS = 5.0  # of processor time an input may take
GROWTH = 2**20  # KiB that all inputs together may add to the memory held at the peak


def read_log(path, **how):
    return click_logs.read_clicks(click_logs.open_log(path), **how)


def lines(*rows):
    return "".join(f"{row}\n" for row in rows).encode()


def rows(*values):
    return lines(*(json.dumps(value, ensure_ascii=False) for value in values))


def parquet(**columns):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


CLICK = {
    "query": "cheap flights",
    "title": "Fly",
    "summary": "low fares 🦄",
    "document_id": "d7",
    "position": 3,
    "clicked": True,
    "dwell": 12.5,
    "count": 4,
    "time": 1.7e9,
}
FULL = list(CLICK)
DOCUMENTS = [{"_id": f"d{i}", "title": "tïtle", "text": "some text"} for i in range(3)]
QUERIES = [{"_id": f"q{i}", "text": "שלום 𝔘"} for i in range(3)]
KNOWN = {"queries": {"q1", "q2"}, "documents": {"d1", "d2"}}
TSV = lines("\t".join(FULL), "\t".join(str(CLICK[name]) for name in FULL))

# Reader -> (file name, function, a sound file).
READERS = {
    "corpus": ("corpus.jsonl", formats.read_corpus, rows(*DOCUMENTS)),
    "queries": ("queries.jsonl", formats.read_queries, rows(*QUERIES)),
    "qrels": (
        "test.tsv",
        formats.read_qrels,
        lines("query-id\tcorpus-id\tscore", "q1\td1\t2", "q2\td2\t-1"),
    ),
    "qrels, known ids": (
        "test.tsv",
        lambda path, **how: formats.read_qrels(path, **KNOWN, **how),
        lines("q1 0 d1 2", "q2 0 d2 0", "q9 0 d1 1"),
    ),
    "run": (
        "a.test.trec",
        formats.read_run,
        lines("q1 Q0 d1 1 9.5 tag", "q1 Q0 d2 2 -1e-3 tag", "q2 Q0 d1 1 3 tag"),
    ),
    "clicks, jsonl": ("log.jsonl", read_log, rows(CLICK, CLICK)),
    "clicks, tsv": ("log.tsv", read_log, TSV),
    "clicks, parquet": (
        "log.parquet",
        read_log,
        parquet(**{name: [value] * 5 for name, value in CLICK.items()}),
    ),
}
each = settings(
    max_examples=-(-INPUTS // (3 * len(READERS))),
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder; what all inputs together have added to the peak is checked after."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield tmp_path_factory.mktemp("hostile")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH


def is_sound(record):
    """Whether a record can go on: through UTF-8, 32 bits and TREC files."""
    for name in record.__slots__:
        value = getattr(record, name)
        if isinstance(value, str):
            value.encode()
            assert "\0" not in value
            if name == "id" or name.endswith("_id"):
                assert not value or value.split() == [value]
        elif isinstance(value, int):
            np.int32(value)
        elif value is not None:
            assert np.isfinite(np.float32(value))
    return True


def meet(name, data, folder):
    """Reads `data`, which gives records or a sentence; returns the records."""
    file, reader, _ = READERS[name]
    path = folder / file
    path.write_bytes(data)
    start = time.process_time()
    stopped = read = kept = None
    try:
        read = list(reader(path))
    except DataError as error:
        stopped = str(error)
    skipped = formats.Skipped()
    try:
        kept = list(reader(path, on_error="skip", skipped=skipped))
    except DataError as error:
        assert stopped is not None and str(path) in str(error)
    assert time.process_time() - start < SECONDS
    if read is not None:
        assert kept == read and not skipped.counts
    else:
        assert str(path) in stopped and len(stopped) < 2000, stopped
        stopped.encode()  # it can be printed
    if kept is not None:
        assert all(map(is_sound, kept))
        if stopped:
            assert skipped.counts == {file: sum(skipped.counts.values())}
            assert "field" in stopped
    event("read" if read is not None else "kept some" if kept else "refused")
    return kept


# --- bytes: sound files, damaged ---

PIECES = [
    b"\0",
    b"\n",
    b"\r\n",
    b"\t",
    b'"',
    b";",
    b"\xff",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",  # a surrogate, as UTF-8 may not write it
    b"\xf4\x90\x80\x80",  # beyond Unicode
    b"\xc0\xaf",  # overlong
    b"\\ud800",
    b"\\u0000",
    "\u202e\u2028\x85\u00a0".encode(),
    b"../../etc/passwd",
    b"<script>",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 400,
    b"9" * 5000,
    b"1_0",
    b"[" * 2000,
    b'{"a":' * 500,
    b"\x1f\x8b",
    b"PAR1",
    b"x" * 3000,
]
place = st.integers(0, 2**16 - 1)
damage = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), place, st.integers(0, 7)),
        st.tuples(st.just("cut"), place, place),
        st.tuples(st.just("end"), place, st.just(0)),
        st.tuples(st.just("twice"), place, place),
        st.tuples(st.just("put"), place, st.sampled_from(PIECES)),
        st.tuples(st.just("over"), place, st.binary(min_size=1, max_size=8)),
    ),
    min_size=1,
    max_size=4,
)


def damaged(data, changes):
    for kind, where, how in changes:
        at = where * len(data) // 2**16
        if kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ (1 << how)]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[at + how % 64 :]
        elif kind == "end":
            data = data[:at]
        elif kind == "twice":
            data = data[:at] + data[at : at + how % 256] * 3 + data[at:]
        elif kind == "put":
            data = data[:at] + how + data[at:]
        elif kind == "over":
            data = data[:at] + how + data[at + len(how) :]
    return data


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name, folder):
    @each
    @given(damage)
    def check(changes):
        meet(name, damaged(READERS[name][2], changes), folder)

    check()


@pytest.mark.parametrize("name", READERS)
def test_damaged_gzip_and_noise(name, folder):
    whole = gzip.compress(READERS[name][2] * 20, mtime=0)

    @each
    @given(st.one_of(damage, st.binary(max_size=200)))
    def check(change):
        data = change if isinstance(change, bytes) else damaged(whole, change)
        meet(name, data, folder)

    check()


# --- values: well-formed files that hold the wrong things ---

odd = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 2**31, 2**63, 10**400, -0.0, 1e308, 0.5]
        + [
            float("nan"),
            float("inf"),
            "",
            " ",
            "\0",
            "\ud800",
            "\u200b",
            "../..",
            "NaN",
        ]
        + [
            "x" * 600,
            "1",
            "-3",
            "1.0",
            "2e9",
            "true",
            "no",
            "q1",
            "d1",
            "a b",
            "\u00a0",
        ]
        + [[], {}, [[[[[]]]]], {"a": {"b": []}}, [None] * 50, "<b>&\"'", "\u202eab"]
    ),
    st.text(max_size=6),
    st.integers(),
    st.floats(),
)
named = st.dictionaries(
    st.sampled_from([*FULL, "_id", "id", "text", "\0"]), odd, max_size=6
)
cell = odd.map(lambda value: str(value).encode("utf-8", "surrogatepass"))


def sound_rows(name):
    data = READERS[name][2]
    return [json.loads(line) for line in data.splitlines()]


def as_table(table):
    """The rows as Parquet, of whatever types Arrow finds; None: it finds none."""
    try:
        columns = {key: [row.get(key) for row in table] for key in table[0]}
        return parquet(**columns)
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError):
        return None


@pytest.mark.parametrize("name", READERS)
def test_wrong_values(name, folder):
    file, _, sound = READERS[name]

    @each
    @given(st.data())
    def check(data):
        if file.endswith(".jsonl"):
            row = {**sound_rows(name)[0], **data.draw(named)}
            content = json.dumps(row).encode() + b"\n" + sound
        elif file.endswith(".parquet"):
            changed = data.draw(named)
            content = as_table([{**CLICK, **changed}, {**CLICK, **changed}]) or sound
        else:
            first, *rest = sound.split(b"\n", 1)
            mark = b"\t" if b"\t" in first else b" "
            count = data.draw(st.integers(0, 9))
            cells = [data.draw(cell) for _ in range(count)]
            content = sound + mark.join(cells) + b"\n"
        meet(name, content, folder)

    check()


# --- manifests ---


@pytest.fixture
def stage(tmp_path):
    manifest = manifests.Manifest(
        kind="sft", settings={"a": [1, "ü"]}, inputs={"prepare": "k"}, facts={"n": 2.5}
    )
    manifest.save(tmp_path)
    return manifest, tmp_path


def load(folder):
    """The manifest, or None behind a sentence."""
    try:
        return manifests.load_manifest(folder)
    except errors.StageError as error:
        assert str(folder / manifests.FILE) in str(error) and len(str(error)) < 2000
        return None


def test_damaged_manifests(stage):
    manifest, folder = stage
    path = folder / manifests.FILE
    whole = path.read_bytes()

    @each
    @given(st.one_of(damage, st.binary(max_size=50)))
    def check(change):
        data = change if isinstance(change, bytes) else damaged(whole, change)
        path.write_bytes(data)
        # What is read is what was written, or nothing is.
        assert load(folder) in (None, manifest)

    check()


def test_manifests_that_say_anything(stage):
    manifest, folder = stage
    names = [field.name for field in dataclasses.fields(manifest)]

    @each
    @given(st.dictionaries(st.sampled_from([*names, "more"]), odd, max_size=3))
    def check(changes):
        fields = {**dataclasses.asdict(manifest), **changes}
        parts = [fields[name] for name in ("kind", "settings", "inputs")]
        try:
            key = storage.digest(parts)
            storage.write_sealed(folder / manifests.FILE, {"key": key, **fields})
        except UnicodeEncodeError:
            return  # no file can hold it
        found = load(folder)
        if found is not None:
            assert all(isinstance(c, str) for c in manifests.changes(found, manifest))

    check()


@pytest.mark.parametrize("text", ["[" * 10**6, "{}", "null", "\0", '{"digest": 1}'])
def test_manifests_that_are_none(stage, text):
    _, folder = stage
    (folder / manifests.FILE).write_text(text)
    assert load(folder) is None


# --- scores ---


@pytest.fixture
def scored(tmp_path):
    """A job of one chunk, and its three files."""
    source = WorldPairs(config.World(num_topics=3, unlabelled_queries=4, candidates=3))
    manifest = manifests.Manifest(
        kind="score",
        settings={"world": "w"},
        inputs={"sft": "s"},
        facts={"teacher": "sft", "teacher_facts": {"tokenizer": "t"}},
    )
    folder = tmp_path / "job"
    job = jobs.open_job(folder, manifest, source, size=20, format="parquet")
    content = source.read(job.chunks[0])
    values = np.sin(content.pairs).astype(np.float32)
    facts = dict(seconds=2.0, chips=4, tokens=100, code="c", device="cpu")
    jobs.save_chunk(job, 0, content, values, **facts)
    return folder, [folder / jobs.FILE, job.receipt_path(0), job.path(0)]


def proof(folder):
    """What a job's folder proves, or None behind a sentence."""
    try:
        job = jobs.load_job(folder)
        assert status_lines(job, read_status(job))
        return verify(job)
    except (DataError, errors.StageError) as error:
        assert str(folder) in str(error) and len(str(error)) < 3000
        return None


@pytest.mark.parametrize("which", range(3))
def test_damaged_scores(scored, which):
    folder, files = scored
    whole, sound = files[which].read_bytes(), proof(folder)
    assert sound is not None and sound.pairs == 12

    @each
    @given(st.one_of(damage, st.binary(max_size=50)))
    def check(change):
        data = change if isinstance(change, bytes) else damaged(whole, change)
        files[which].write_bytes(data)
        # What is proved is what was scored, or nothing is.
        assert proof(folder) in (None, sound)

    check()


@pytest.mark.parametrize("which", range(2))
def test_scores_that_say_anything(scored, which):
    folder, files = scored
    sealed = json.loads(files[which].read_bytes())
    del sealed["digest"]

    @each
    @given(st.dictionaries(st.sampled_from([*sealed, "more"]), odd, max_size=3))
    def check(changes):
        fields = {**sealed, **changes}
        try:
            text = json.dumps({**fields, "digest": storage.digest(fields)})
            files[which].write_text(text)
        except UnicodeEncodeError:
            return  # no file can hold it
        found = proof(folder)
        assert found is None or found.pairs == 12

    check()


# --- contracts ---


@pytest.fixture
def exported(tmp_path):
    golden = contract.Golden(
        kind="short", query="q", title="t", text="x", tokens=[1, 2], document=1, score=1
    )
    values = {str: "a", int: 3, list[int]: [1], contract.Golden: golden}
    values |= {dict[str, str]: {"1": "a"}, dict[str, float]: {"mean": 0.5}}
    values |= {dict[str, Any]: {"layers": 2}, list[contract.Golden]: [golden]}
    fields = {
        name: values[kind]
        for name, kind in get_type_hints(contract.Contract).items()
        if name != "version"
    }
    fields["passages"] = {"most": 3, "overlap": 8, "score": "max"}
    made = contract.Contract(version=contract.VERSION, **fields)
    made.save(tmp_path)
    save_file({"a": np.ones((4, 3), np.float32)}, tmp_path / "model.safetensors")
    return made, tmp_path


def load_contract(folder):
    try:
        return contract.load_contract(folder)
    except errors.ContractError as error:
        assert str(folder) in str(error) and len(str(error)) < 2000
        return None


def test_damaged_contracts(exported):
    made, folder = exported
    path = folder / contract.FILE
    whole = path.read_bytes()
    assert load_contract(folder) == made

    @each
    @given(damage)
    def check(changes):
        path.write_bytes(damaged(whole, changes))
        found = load_contract(folder)
        if found is not None:
            manifests.check_types(found)

    check()
    path.write_text("[" * 10**6)
    assert load_contract(folder) is None


def test_contracts_that_say_anything(exported):
    made, folder = exported
    whole = dataclasses.asdict(made)

    @each
    @given(st.dictionaries(st.sampled_from([*whole, "more"]), odd, max_size=3))
    def check(changes):
        golden = [{**whole["golden"][0], **changes}] if "kind" in changes else []
        fields = {**whole, **changes, **({"golden": golden} if golden else {})}
        (folder / contract.FILE).write_text(json.dumps(fields))
        found = load_contract(folder)
        assert found is None or all(isinstance(key, str) for key in found.tensors)

    check()


def test_damaged_safetensors(exported):
    _, folder = exported
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    expected = contract.tensor_digests(folder)

    @each
    @given(damage)
    def check(changes):
        data = damaged(whole, changes)
        path.write_bytes(data)
        try:
            found = contract.tensor_digests(folder)
        except errors.ContractError as error:
            assert str(path) in str(error) and len(str(error)) < 2000
        else:
            # The same digests stand for the same numbers, wherever the damage is.
            assert found != expected or whole[-48:] in data

    check()


# --- whole TREC files ---


@pytest.mark.parametrize("name", ["run", "qrels"])
def test_whole_trec_files(name, folder):
    file, reader, sound = READERS[name]
    path = folder / file
    # For evaluation grades may be fractions.
    how = {} if name == "run" else {"check_grade": check_number}

    @each
    @given(st.one_of(damage, st.lists(cell, max_size=9)))
    def check(change):
        if change and isinstance(change[0], bytes):
            path.write_bytes(sound + b" ".join(change) + b"\n")
        else:
            path.write_bytes(damaged(sound, change))
        try:
            expected = list(reader(path, **how))
        except DataError:
            expected = []
        load = trec.load_run if name == "run" else trec.load_qrels
        try:
            found = load(path)
        except DataError as error:
            assert str(path) in str(error) and not expected
        else:
            try:
                path.read_bytes().decode()
            except UnicodeDecodeError:
                return  # in a column that is not read, such as the tag
            found = found.scores if name == "run" else found.grades
            pairs = {(q, d): v for q, one in found.items() for d, v in one.items()}
            assert pairs == {
                (one.query_id, one.document_id): (
                    one.score if name == "run" else one.grade
                )
                for one in expected
            }

    check()


# --- bombs: small files that unpack to much ---


def peak(code, folder):
    """Peak memory in MiB, and output, of Python code in a process of its own."""
    start = textwrap.dedent("""
        import pathlib, resource
        from ranker.data import click_logs, formats, lines
        from ranker.errors import DataError
        def read_log(path, **how):
            return click_logs.read_clicks(click_logs.open_log(path), **how)
        def read(reader, path, **how):
            try:
                print(sum(1 for _ in reader(pathlib.Path(path), **how)), "records")
            except DataError as error:
                print("refused:", error)
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    """)
    end = """
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) // 1024)
"""
    found = subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(code) + end],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    *said, size = found.stdout.splitlines()
    return int(size), "\n".join(said)


def test_gzip_bombs_are_refused_within_a_bound(tmp_path):
    member = gzip.compress(b"\0" * 2**24, 9)
    (tmp_path / "corpus.jsonl.gz").write_bytes(member * 256)  # 4 MiB, holds 4 GiB
    text = json.dumps({"query": "q" * 1000, "title": "t"}).encode() + b"\n"
    member = gzip.compress(text * 2**14, 9)
    (tmp_path / "log.jsonl.gz").write_bytes(member * 64)  # 1 GiB of good lines
    size, said = peak(
        """
        read(formats.read_corpus, "corpus.jsonl.gz", on_error="skip")
        lines.MAX_EXPANSION, lines.FREE_EXPANSION = 10, 2**20  # is soon reached
        read(read_log, "log.jsonl.gz")
        """,
        tmp_path,
    )
    first, second = said.splitlines()
    assert "the line is over 16 MiB" in first
    assert "over 10 times its size" in second
    assert size < 200


def test_a_long_line_costs_a_bounded_multiple_of_itself(tmp_path):
    # The worst that JSON does: each 3 bytes become an object of 64.
    line = b'{"_id": "q", "text": [' + b"[]," * (5 * 2**20) + b"[]]}\n"
    (tmp_path / "queries.jsonl").write_bytes(line)
    (tmp_path / "deep.jsonl").write_bytes(b"[" * (15 * 2**20) + b"\n")
    size, said = peak(
        """
        read(formats.read_queries, "queries.jsonl")
        read(formats.read_queries, "deep.jsonl")
        """,
        tmp_path,
    )
    assert "field 'text': found [[], [], " in said and "field 'line'" in said
    assert all(len(line) < 500 for line in said.splitlines())
    assert size < 30 * 16


def test_parquet_bombs_are_refused_within_a_bound(tmp_path):
    def save(name, text, count):
        values = pa.array([text])
        column = pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(count, np.int32)), values
        )
        query = pa.array(["q"] * count)
        pq.write_table(pa.table({"query": query, "title": column}), tmp_path / name)
        assert (tmp_path / name).stat().st_size < 2**20

    save("long.parquet", "x" * MAX_LINE, 1000)
    save("many.parquet", "x" * 2**20, 100_000)  # holds 100 GiB, 4 GiB a batch
    save("sum.parquet", "x" * 2**14, 100_000)  # holds 1.5 GiB, 64 MiB a batch
    size, said = peak(
        """
        read(read_log, "long.parquet", on_error="skip")
        read(read_log, "many.parquet", on_error="skip")
        read(read_log, "sum.parquet", on_error="skip")
        """,
        tmp_path,
    )
    first, second, third = said.splitlines()
    assert "long.parquet: column 'title' holds a text of" in first
    assert "over 16 MiB" in first
    assert "many.parquet: column 'title': 4096 rows hold 4096 MiB of text" in second
    assert "sum.parquet: row " in third and "times the file's size" in third
    assert size < 300


# --- the same by hand, where the message matters ---

SPREADSHEETS = {
    "UTF-16": ("log.tsv", TSV.decode().encode("utf-16"), "UTF-16.*iconv"),
    "commas": ("log.tsv", b"query,title,summary\na,b,c\n", "not separated by tabs"),
    "semicolons": ("log.tsv", b"query;title\na;b\n", "not separated by tabs"),
    "a column twice": ("log.tsv", b"query\tquery\na\tb\n", "twice"),
    "another table": ("log.csv", b"a,b\n1,2\n", "expected query and one of title"),
    "Excel": ("log.xlsx", b"PK\x03\x04", "spreadsheet as text with tabs"),
    "Latin-1": ("log.tsv", "query\ttitle\ncafé\tb\n".encode("latin-1"), ":2: byte 3"),
}


@pytest.mark.parametrize(
    ("file", "data", "message"), SPREADSHEETS.values(), ids=SPREADSHEETS
)
def test_spreadsheets(tmp_path, file, data, message):
    path = tmp_path / file
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        list(read_log(path))


def test_a_spreadsheet_with_a_byte_order_mark_and_windows_lines_is_read(tmp_path):
    path = tmp_path / "log.tsv"
    path.write_bytes("\ufeffquery\ttitle\r\ncafé\tb\r\n".encode())
    (click,) = read_log(path)
    assert (click.query, click.title) == ("café", "b")


def test_qrels_between_commas(tmp_path):
    path = tmp_path / "test.tsv"
    path.write_text("query-id,corpus-id,score\nq1,d1,1\n")
    with pytest.raises(DataError, match="between tabs or spaces"):
        list(formats.read_qrels(path))


LIES = {
    "bytes for texts": (
        {"query": [b"a"], "title": ["t"]},
        "column 'query' is 'binary'",
    ),
    "times": (
        {"query": ["a"], "title": [datetime.date(2020, 1, 1)]},
        "column 'title' is 'date32",
    ),
    "lists": ({"query": [["a"]], "title": ["t"]}, "column 'query' is 'list"),
    "no query": ({"title": ["a"]}, "expected query"),
    "numbers": ({"query": [7], "title": ["t"]}, r"parquet:1: field 'query': found 7"),
    "no value": ({"query": [None], "title": ["t"]}, "field 'query': found None"),
}


@pytest.mark.parametrize(("columns", "message"), LIES.values(), ids=LIES)
def test_parquet_of_other_types(tmp_path, columns, message):
    path = tmp_path / "log.parquet"
    path.write_bytes(parquet(**columns))
    with pytest.raises(DataError, match=message):
        list(read_log(path))


def test_parquet_whose_text_is_not_utf8(tmp_path):
    path = tmp_path / "log.parquet"
    path.write_bytes(
        parquet(query=["good", "abcdefgh", "abcdefgh"], title=["t"] * 3).replace(
            b"abcdefgh", b"abc\xffefgh"
        )
    )
    with pytest.raises(DataError, match=r"log.parquet: row 2: column 'query'.*UTF-8"):
        list(read_log(path))
    with pytest.raises(DataError, match=r"log.parquet: row 2: column 'query'.*UTF-8"):
        list(click_logs.read_log_batches(click_logs.open_log(path), on_error="skip"))


def test_pipes_are_refused_instead_of_waited_for(tmp_path):
    path = tmp_path / "log.jsonl"
    os.mkfifo(path)
    with pytest.raises(DataError, match="is a pipe or a device"):
        list(read_log(path))
    with pytest.raises(DataError, match="is a pipe or a device"):
        list(read_log(tmp_path / "log.jsonl"))


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "..", "/etc/x", "C:\\x"])
def test_ids_like_paths_are_only_ids(tmp_path, name):
    path = tmp_path / "a" / "corpus.jsonl"
    path.parent.mkdir()
    path.write_bytes(rows({"_id": name, "text": "x"}))
    assert [one.id for one in formats.read_corpus(path)] == [name]
    run = tmp_path / "a" / "x.trec"
    formats.write_run(run, {name: {name: 1.0}}, tag="us")
    (back,) = formats.read_run(run)
    assert (back.query_id, back.document_id) == (name, name)
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        *("a", "corpus.jsonl", "x.trec")
    ]


def test_counts_that_are_merged_do_not_overflow(tmp_path):
    click = Click("q", "t", "s", count=2**31 - 1)
    examples, _ = clicks_to_examples([click] * 3, config.ClickRules(dev_fraction=0.0))
    batches = {name: click_batches(some) for name, some in examples.items()}
    write_clicks(tmp_path / "clicks", batches)
    (back,) = load_clicks(tmp_path / "clicks", "train")
    assert back.count == 3 * (2**31 - 1)
