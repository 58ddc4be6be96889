"""A job's folder: written whole, proved, and damage named."""

import dataclasses
import errno
import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from ranker import config, score, storage
from ranker.data.records import Document
from ranker.errors import DataError, StageError
from ranker.manifests import Manifest
from ranker.scoring import job as jobs
from ranker.scoring import proof
from ranker.scoring.pairs import Bad, ListPairs, WorldPairs, make_list
from ranker.scoring.proof import verify
from ranker.scoring.status import present_rate, read_status
from ranker.scoring.targets import load_targets

WORLD = config.World(num_topics=3, unlabelled_queries=10, candidates=6)
FACTS = dict(seconds=2.0, chips=4, tokens=100, code="c0de", device="cpu")


def manifest(**settings):
    return Manifest(
        kind="score",
        settings={"world": "w", **settings},
        inputs={"prepare": "p", "sft": "s"},
        facts={"teacher": "sft", "teacher_facts": {"tokenizer": "t", "template": "u"}},
    )


def source():
    return WorldPairs(WORLD)


def value(content):
    """A score that a pair's number decides."""
    return np.sin(content.pairs).astype(np.float32)


def begin(folder, format="parquet"):
    return jobs.open_job(folder, manifest(), source(), size=20, format=format)


def fill(job, numbers=None, **facts):
    for number in range(len(job.chunks)) if numbers is None else numbers:
        content = source().read(job.chunks[number])
        jobs.save_chunk(job, number, content, value(content), **{**FACTS, **facts})
    return job


@pytest.fixture(params=["parquet", "array_record"])
def job(tmp_path, request):
    return fill(begin(tmp_path / "job", request.param))


def test_every_pair_has_its_score(job):
    tables = [jobs.read_chunk(job, number)[0] for number in range(len(job.chunks))]
    assert [table.num_rows for table in tables] == [24, 24, 12] and job.pairs == 60
    numbers = np.concatenate([table["pair"] for table in tables])
    values = np.concatenate([table["score"] for table in tables])
    np.testing.assert_array_equal(numbers, np.arange(60))
    np.testing.assert_array_equal(values, np.sin(np.arange(60)).astype(np.float32))
    assert str(tables[0]["score"].type) == "float"
    found = verify(job, source=source())
    assert found.pairs == 60 and not found.quarantined
    wanted = values.astype(np.float64)
    assert found.mean == pytest.approx(wanted.mean())
    assert found.std == pytest.approx(wanted.std())
    assert (found.min, found.max) == (wanted.min(), wanted.max())


def test_a_folder_of_parquet_chunks_is_one_table(tmp_path):
    job = fill(begin(tmp_path))
    assert pq.read_table(tmp_path / "chunks").num_rows == 60
    assert job.missing() == [] and jobs.load_job(tmp_path) == job


def test_what_is_missing_is_what_has_no_file_or_no_receipt(tmp_path):
    job = fill(begin(tmp_path))
    job.receipt_path(0).unlink()
    job.path(2).unlink()
    assert job.missing() == [0, 2]
    with pytest.raises(DataError, match="2 of 3 chunks are missing: 00000-of-00003"):
        verify(job)
    before = job.path(1).read_bytes()
    assert verify(fill(job, [0, 2])).pairs == 60
    assert job.path(1).read_bytes() == before


def test_equal_scores_are_equal_bytes(job, tmp_path):
    other = fill(begin(tmp_path / "other", job.format), [2, 0, 1])
    for number in range(3):
        assert job.path(number).read_bytes() == other.path(number).read_bytes()


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def test_damage_is_named(job):
    """Flips and cuts in the file of a chunk, its receipt and the job's manifest."""
    generator = np.random.default_rng(0)
    for path in (job.path(1), job.receipt_path(1), job.folder / jobs.FILE):
        whole = path.read_bytes()
        damaged = [
            flip(whole, int(at)) for at in generator.integers(len(whole), size=8)
        ]
        damaged += [whole[: int(at)] for at in generator.integers(len(whole), size=4)]
        for data in damaged:
            path.write_bytes(data)
            with pytest.raises(DataError) as found:
                verify(jobs.load_job(job.folder))
            assert path.name in str(found.value) and "again" in str(found.value)
        path.write_bytes(whole)
    assert verify(job).pairs == 60


def rewrite(job, number, change):
    """A chunk whose table and digest agree, and whose content is wrong."""
    table, receipt = jobs.read_chunk(job, number)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    change(columns)
    data = jobs.encode_table(pa.table(columns, schema=table.schema), job.format)
    job.path(number).write_bytes(data)
    receipt["sha256"] = hashlib.sha256(data).hexdigest()
    storage.write_sealed(job.receipt_path(number), receipt)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["score"].__setitem__(3, float("nan")),
            "pair 27 has the score nan",
        ),
        (
            lambda c: c["score"].__setitem__(3, float("inf")),
            "pair 27 has the score inf",
        ),
        (lambda c: c["pair"].__setitem__(3, 26), "each of the pairs 24 to 47 once"),
        (lambda c: [x.pop() for x in c.values()], "found 23 scores"),
        (lambda c: c["document_id"].__setitem__(0, None), "'document_id' is missing"),
        (lambda c: c["document_id"].__setitem__(0, "d99"), "was scored; the input has"),
        (lambda c: c["query_id"].__setitem__(0, "q99"), "was scored; the input has"),
    ],
)
def test_wrong_content_is_named(tmp_path, change, message):
    job = fill(begin(tmp_path))
    rewrite(job, 1, change)
    with pytest.raises(DataError, match=message) as found:
        verify(job, source=source())
    assert "00001-of-00003" in str(found.value)


def test_a_score_that_is_not_finite_is_never_written(tmp_path):
    job = begin(tmp_path)
    content = source().read(job.chunks[0])
    with pytest.raises(AssertionError):
        jobs.save_chunk(job, 0, content, value(content) * np.nan, **FACTS)
    assert job.missing() == [0, 1, 2]


def test_pairs_that_were_set_aside_are_listed(tmp_path, capsys):
    job = fill(begin(tmp_path), [0, 2])
    content = source().read(job.chunks[1])
    aside = Bad(30, content.query_ids[6], content.document_ids[6], "the score is nan")
    keep = np.arange(24) != 6
    content = dataclasses.replace(
        content,
        pairs=content.pairs[keep],
        rows=content.rows[keep],
        query_ids=[q for q, k in zip(content.query_ids, keep, strict=True) if k],
        document_ids=[d for d, k in zip(content.document_ids, keep, strict=True) if k],
        bad=[aside],
    )
    jobs.save_chunk(job, 1, content, value(content), **FACTS)
    found = verify(job, source=source())
    assert found.pairs == 59 and found.quarantined == [aside]
    score.main(["verify", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "59 pairs have exactly one finite score each, 1 were set aside" in shown
    assert '"reason": "the score is nan"' in shown
    path = jobs.save_quarantine(job, found.quarantined)
    assert json.loads(path.read_text())["pair"] == 30


def test_a_pair_that_comes_twice_is_found_across_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(proof, "_HASHES", 2)
    corpus = [Document(f"d{i}", "t", "") for i in range(4)]
    lists = [make_list(f"q{i}", "x", range(4)) for i in (0, 1, 2, 1)]
    pairs = ListPairs({"train": lists}, corpus)
    job = jobs.open_job(tmp_path, manifest(), pairs, size=4, format="parquet")
    for number, chunk in enumerate(job.chunks):
        content = pairs.read(chunk)
        jobs.save_chunk(job, number, content, value(content), **FACTS)
    with pytest.raises(DataError, match=r"\('q1', 'd\d'\) is scored twice, as number"):
        verify(job)


def test_another_job_in_the_folder_is_refused(tmp_path):
    begin(tmp_path)
    with pytest.raises(StageError, match="another scoring job: format: None -> x"):
        jobs.open_job(
            tmp_path, manifest(format="x"), source(), size=20, format="parquet"
        )
    with pytest.raises(StageError, match="holds no scoring job"):
        jobs.load_job(tmp_path / "nowhere")
    empty = WorldPairs(config.World(unlabelled_queries=0))
    with pytest.raises(DataError, match="holds no pair"):
        jobs.open_job(tmp_path / "x", manifest(), empty, size=2, format="parquet")


def test_a_full_disk_and_a_read_only_folder_are_said(tmp_path, monkeypatch):
    job = fill(begin(tmp_path), [0])

    class Full:
        def __init__(self, *_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", Full)
    with pytest.raises(StageError, match="00001.*No space left.*run the same command"):
        fill(job, [1])
    monkeypatch.undo()
    assert job.missing() == [1, 2] and not job.stray()  # nothing half-written is left
    monkeypatch.setattr(type(epath.Path(tmp_path)), "mkdir", Full)
    with pytest.raises(StageError, match="new cannot be written"):
        begin(tmp_path / "new")
    with pytest.raises(StageError, match="cannot be written"):
        begin(tmp_path / jobs.FILE / "below_a_file")


def test_status(tmp_path, capsys):
    job = fill(begin(tmp_path), [0, 1])
    (tmp_path / "chunks" / "notes.txt").write_text("mine")
    (tmp_path / "chunks" / ".00002-of-00003.parquet.host.1").write_bytes(b"half")
    found = read_status(job)
    assert (found.chunks, found.done, found.pairs_done) == (3, 2, 48)
    assert found.chip_hours == pytest.approx(2 * 2 * 4 / 3600)
    assert found.chip_hours_total == pytest.approx(found.chip_hours * 60 / 48)
    assert found.pairs_per_second == pytest.approx(24, rel=0.1)  # two side by side
    assert found.eta == pytest.approx(12 / found.pairs_per_second)
    assert len(found.stray) == 2
    score.main(["status", str(tmp_path)])
    shown = capsys.readouterr().out
    for part in (
        "2 of 3 done",
        "missing     00002-of-00003",
        "notes.txt",
        "chip-hours",
    ):
        assert part in shown
    assert verify(fill(job, [2], code="other")).pairs == 60
    score.main(["status", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "made by 2 versions of the code" in shown and "ETA         done" in shown
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(SystemExit, match="error: .*job.json is damaged"):
        score.main(["status", str(tmp_path)])


# 60 chunks of 300 pairs, 30 s each, without a pause: 10 pairs/s.
STEADY = [(1000.0 + 30 * i, 30.0, 300) for i in range(60)]
DAY = 86400.0


@pytest.mark.parametrize(
    "times, expected",
    [
        ({"a": STEADY}, 10),
        ({"a": STEADY, "b": STEADY}, 20),
        ({"a": STEADY + STEADY}, 20),  # two processes of a host
        ({"a": [*STEADY[:-1], (STEADY[-1][0] + DAY, 30.0, 300)]}, 10),  # ahead
        ({"a": [*STEADY[:-1], (STEADY[-1][0] - DAY, 30.0, 300)]}, 10),  # set back
        ({"a": STEADY, "b": [(end + DAY, *rest) for end, *rest in STEADY]}, 20),
        ({"a": STEADY, "b": [(end - DAY, *rest) for end, *rest in STEADY]}, 10),
        ({"a": [(end + 4 * i, took, n) for i, (end, took, n) in enumerate(STEADY)]}, 9),
        ({"a": [(5000.0, 3600.0, 7200)]}, 2),  # one chunk, longer than is looked back
        ({}, 0),
    ],
)
def test_the_speed_does_not_depend_on_clocks(times, expected):
    now = max((end for end, *_ in times.get("a", [])[:-1]), default=5000.0) + 31
    assert present_rate(times, now=now) == pytest.approx(expected, rel=0.03)


def test_verify_keeps_its_hashes_where_it_is_told(job, tmp_path, monkeypatch, capsys):
    asked = []
    real = proof.tempfile.TemporaryFile

    def watched(dir=None):
        asked.append(dir)
        return real(dir=dir)

    monkeypatch.setattr(proof.tempfile, "TemporaryFile", watched)
    place = str(tmp_path / "cache")
    score.main(["verify", str(job.folder), "--cache", place])
    assert asked == [place] and "verified: 60 pairs" in capsys.readouterr().out
    verify(job)
    assert asked[1:] == [None]


class Bucket(MemoryFileSystem):
    """What gcsfs would be, in memory."""

    protocol = ("gcs", "gs")
    cachable = False
    store: dict = {}
    pseudo_dirs = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).removeprefix("gs://").strip("/")


def test_a_bucket_serves_as_a_folder(tmp_path, monkeypatch):
    bucket = Bucket()
    monkeypatch.setattr(
        backend._FileSystemSpecBackend, "_get_filesystem", lambda *_: bucket
    )
    job = fill(begin("gs://bucket/job"))
    assert jobs.load_job("gs://bucket/job").missing() == []
    assert verify(job, source=source()).pairs == 60
    local = fill(begin(tmp_path))
    assert local.path(1).read_bytes() == job.path(1).read_bytes()
    job.path(1).write_bytes(b"no")
    with pytest.raises(DataError, match="gs://bucket/job/chunks/00001.*damaged"):
        verify(job)
    assert not job.stray() and read_status(job).done == 3


def test_distillation_reads_the_lists_scores(tmp_path):
    corpus = [Document(f"d{i}", "t", "") for i in range(6)]
    splits = {
        "train": [make_list(f"q{i}", "x", range(i, i + 2)) for i in range(4)],
        "unlabelled": [make_list(f"u{i}", "x", range(i + 1)) for i in range(5)],
    }
    pairs = ListPairs(splits, corpus)
    job = jobs.open_job(tmp_path, manifest(), pairs, size=3, format="parquet")
    for number, chunk in enumerate(job.chunks):
        content = pairs.read(chunk)
        jobs.save_chunk(job, number, content, value(content), **FACTS)
    found = load_targets(tmp_path, splits)
    sizes = [2] * 4 + [1, 2, 3, 4, 5]
    assert len(found) == 9 and [len(one) for one in found] == sizes
    wanted = np.sin(np.arange(23)).astype(np.float32)
    np.testing.assert_array_equal(np.concatenate(list(found)), wanted)
    np.testing.assert_array_equal(
        np.concatenate(found.scaled(2.0, 1.0)[2:4]), wanted[4:8] * 2 + 1
    )
    with pytest.raises(IndexError):
        found[9]
    other = {**splits, "train": splits["train"][::-1]}
    short = {**splits, "unlabelled": splits["unlabelled"][:4]}
    more = {**splits, "unlabelled": [*splits["unlabelled"], make_list("v", "x", [0])]}
    for lists, message in [
        (other, "expected the 2 candidates of query 'q3'"),
        (short, "left over"),
        (more, "the scores end before"),
        ({"train": splits["train"]}, "left over after the last list"),
    ]:
        with pytest.raises(DataError, match=message):
            load_targets(tmp_path, lists)
    job.path(1).unlink()
    with pytest.raises(DataError, match="cannot be read|missing"):
        load_targets(tmp_path, splits)
