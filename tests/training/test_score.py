"""Scoring as a job: killed, resumed, poisoned, by any number of processes."""

import dataclasses
import functools
import json
import os
import pickle
import re
import subprocess
import sys
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest

from ranker import config, errors, manifests, score, sharding
from ranker.data import pairs
from ranker.data.prepare import prepare
from ranker.errors import DataError
from ranker.models.params import flat
from ranker.scoring import job as jobs
from ranker.scoring.targets import load_targets
from ranker.training import score as teacher
from ranker.training import scorer
from ranker.training.scorer import make_score, score_lists
from ranker.training.train import train
from ranker.training.trained import load_trained

WORLD = config.World(
    num_topics=6,
    labelled_queries=8,
    unlabelled_queries=30,
    dev_queries=0,
    test_queries=2,
    clicks=40,
    candidates=5,
)
STAGE = dict(data=config.Data(world=WORLD), text=config.Text(teacher_length=32))


MODEL = config.Decoder(
    num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16
)


def train_settings(name):
    return config.Train(
        **STAGE,
        name=name,
        model=MODEL,
        objective=config.Rank(),
        optim=config.Optim(learning_rate=1e-2, warmup=0),
        batch=config.Batch(size=8, list_size=4),
        loop=config.Loop(steps=1),
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(train_settings("sft"), folder)
    return folder


def settings(name, **fields):
    return config.Score(**STAGE, name=name, **{"chunk_pairs": 20, "rows": 16, **fields})


def job_of(workdir, name):
    return jobs.load_job(workdir / name)


def values(workdir, name):
    return pq.read_table(workdir / name / "chunks")["score"].to_numpy()


# Children are forked before a backend starts, so that imports are paid for once. To be
# killed, they kill themselves, at a receipt of theirs: nothing waits or polls.
DRIVER = """
import dataclasses, os, pickle, signal, sys
from ranker import storage
from ranker.training.score import score_chunks

workdir, settings = pickle.load(sys.stdin.buffer)
receipts = lambda name: set((workdir / name / "receipts").glob("*.json"))

def die_at(receipt, written):
    # With this receipt on disk, or with its chunk alone.
    write, count = storage.write_sealed, [0]

    def watched(path, *arguments, **keywords):
        count[0] += path.parent.name == "receipts"
        if count[0] == receipt and not written:
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, *arguments, **keywords)
        if count[0] == receipt:
            os.kill(os.getpid(), signal.SIGKILL)

    storage.write_sealed = watched

def run(name, count, deaths=()):
    children = []
    for index in range(count):
        child = os.fork()
        if not child:
            if deaths:
                die_at(*deaths[index])
            mine = dict(name=name, process_index=index, process_count=count)
            score_chunks(dataclasses.replace(settings, **mine), workdir)
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == (signal.SIGKILL if deaths else 0)
    return {path: path.stat().st_mtime_ns for path in receipts(name)}

clean = run("clean", 1)
three = run("killed", 3, [(2, False), (3, True), (1, True)])
two = run("killed", 2, [(4, True), (5, False)])
one = run("killed", 1)
assert 4 <= len(three) < len(two) < len(one) == len(clean), (three, two, one, clean)
assert three.items() <= two.items() <= one.items()  # what is done is not done again
"""


def test_killed_and_resumed_by_other_numbers_of_processes_is_the_same(workdir):
    world = dataclasses.replace(WORLD, unlabelled_queries=400)
    stage = settings("x", input="world", chunk_pairs=40)
    stage = dataclasses.replace(stage, data=config.Data(world=world))
    code = (
        "import jax\njax.config.update('jax_platforms', 'cpu')\n"
        "jax.config.update('jax_disable_most_optimizations', True)\n" + DRIVER
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps((workdir, stage)),
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    a, b = job_of(workdir, "clean"), job_of(workdir, "killed")
    assert len(a.chunks) == 50 and a.pairs == 2000
    for number in range(len(a.chunks)):
        assert a.path(number).read_bytes() == b.path(number).read_bytes()
    facts = [
        manifests.load_manifest(workdir / name).facts for name in ("clean", "killed")
    ]
    assert facts[0] == facts[1] and facts[0]["pairs"] == 2000
    assert facts[0]["std"] > 0
    for name in ("clean", "killed"):
        proof = teacher.verify_chunks(dataclasses.replace(stage, name=name), workdir)
        assert proof.pairs == 2000


def test_processes_take_different_chunks(workdir):
    for index in (1, 0):
        one = settings("shared", process_index=index, process_count=2)
        manifest = teacher.score_chunks(one, workdir)
        done = set(range(10)) - set(job_of(workdir, "shared").missing())
        assert done == ({1, 3, 5, 7, 9} if index else set(range(10)))
        assert (manifest is None) == (index == 1)
        assert (manifests.load_manifest(workdir / "shared").done) == (index == 0)
    teacher.score_chunks(settings("alone"), workdir)
    np.testing.assert_array_equal(values(workdir, "shared"), values(workdir, "alone"))


def test_a_trained_teacher_scores_from_weights_in_its_own_dtype(workdir):
    """Of bfloat16: half the memory of its matrices, and not a bit of its scores."""
    stage = dataclasses.replace(
        train_settings("low"),
        model=dataclasses.replace(MODEL, dtype="bfloat16"),
    )
    train(stage, workdir)
    prepared = prepare(stage.data, stage.text, workdir)
    mesh = sharding.make_mesh(config.Mesh(data=2, fsdp=2, tensor=2))
    load = functools.partial(
        load_trained, workdir, "low", prepared, mesh, kinds=("sft",), by="the test"
    )
    whole, half = load(), load(scoring=True)
    matrices = 0
    for (path, a), (_, b) in zip(flat(whole.params), flat(half.params), strict=True):
        assert a.dtype == "float32" and a.sharding == b.sharding
        matrix = path.startswith("body.layers.") and "norm" not in path
        assert b.dtype == ("bfloat16" if matrix else "float32"), path
        matrices += matrix
    assert matrices > 4
    lists = [prepared.lists("train")[i] for i in range(8)]
    score_of = make_score(whole.network)
    scores = [
        score_lists(
            score_of,
            one.params,
            one.network,
            lists,
            one.encoder(prepared),
            rows=16,
        )
        for one in (whole, half)
    ]
    np.testing.assert_array_equal(*scores)
    assert np.std(scores[0]) > 0
    # One that computes in float32 keeps float32.
    as_it_was = load_trained(
        *(workdir, "sft", prepared, mesh),
        kinds=("sft",),
        by="the test",
        scoring=True,
    )
    assert all(one.dtype == "float32" for _, one in flat(as_it_was.params))


def test_scores_do_not_depend_on_what_else_is_scored(workdir):
    teacher.score_chunks(settings("whole", chunk_pairs=1000), workdir)
    teacher.score_chunks(settings("part", chunk_pairs=15), workdir)
    np.testing.assert_allclose(
        values(workdir, "whole"), values(workdir, "part"), atol=1e-6
    )


def test_a_finished_job_scores_what_was_taken_out_alone(workdir):
    stage = settings("again")
    teacher.score_chunks(stage, workdir)
    job = job_of(workdir, "again")
    before = [os.stat(job.path(k)).st_mtime_ns for k in range(10)]
    data = job.path(3).read_bytes()
    job.path(3).write_bytes(data[:-1])
    with pytest.raises(DataError, match="00003-of-00010.*digest differs.*delete"):
        teacher.verify_chunks(stage, workdir)
    job.path(3).unlink()
    teacher.score_chunks(stage, workdir)
    after = [os.stat(job.path(k)).st_mtime_ns for k in range(10)]
    assert [k for k in range(10) if before[k] != after[k]] == [3]
    assert job.path(3).read_bytes() == data


def poison(monkeypatch, *, where, alone=True):
    """The model breaks down at some pairs; `alone`: at batches of them too."""
    real = teacher.score_lists

    def broken(score, params, network, lists, encoder, **rest):
        found = np.array(real(score, params, network, lists, encoder, **rest))
        if alone or len(found) > 1:
            found[where(found)] = np.nan
        return found

    monkeypatch.setattr(teacher, "score_lists", broken)


def smallest(found):
    return np.array([int(found.argmin())])


def test_a_score_that_is_not_finite_stops_with_the_chunks_name(workdir, monkeypatch):
    poison(monkeypatch, where=smallest)
    match = r"chunk 00000-of-00010: 1 pairs.*query 'q\d', document 'd\d+'.*nan"
    with pytest.raises(FloatingPointError, match=match):
        teacher.score_chunks(settings("nan"), workdir)
    assert job_of(workdir, "nan").missing() == list(range(10))


def test_poisoned_pairs_are_set_aside_and_listed(workdir, monkeypatch, capsys):
    teacher.score_chunks(settings("sound"), workdir)
    stage = settings("poisoned", quarantine=2)
    poison(monkeypatch, where=smallest)
    manifest = teacher.score_chunks(stage, workdir)
    assert manifest.facts["pairs"] == 180 and manifest.facts["quarantined"] == 10
    lines = (workdir / "poisoned" / "quarantined.jsonl").read_text().splitlines()
    bad = [json.loads(line) for line in lines]
    assert len(bad) == 10 and all("nan" in one["reason"] for one in bad)
    assert "10 pairs were set aside" in capsys.readouterr().out
    sound, found = values(workdir, "sound"), values(workdir, "poisoned")
    rest = np.delete(sound, [one["pair"] for one in bad])
    np.testing.assert_array_equal(found, rest)
    assert teacher.verify_chunks(stage, workdir).pairs == 180
    with pytest.raises(DataError, match="have no score: they were set aside"):
        load_targets(workdir / "poisoned", {"train": [None] * 4})


def test_a_job_says_how_far_the_devices_had_work(workdir, capsys):
    teacher.score_chunks(settings("busy"), workdir)
    [share] = re.findall(
        r"the devices had work for (\S+)% or more of 0:", capsys.readouterr().out
    )
    assert 0 < float(share) <= 100


class Result:
    """What devices compute until it is ready."""

    ready = False

    def is_ready(self):
        return self.ready


def test_time_counts_as_idle_from_when_devices_were_seen_at_work(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(scorer.time, "perf_counter", lambda: clock[0])
    idle, results = scorer.Idle(), []

    def send(seconds):
        clock[0] += seconds  # until the batch is there
        idle.begins()
        results.append(Result())
        idle.sent(results[-1])

    send(50)  # before the first batch nothing counts
    clock[0] += 1
    idle.look()  # still at work
    send(2)  # and so it is here: the batch was there in time
    clock[0] += 1
    idle.look()
    results[-1].ready = True
    send(3)  # may have been idle for all of it
    clock[0] += 3
    assert idle.seconds == 10 and idle.busy_share == pytest.approx(0.7)


def test_the_next_batches_are_begun_before_they_are_asked_for():
    begun = threading.Event()

    def items():
        begun.set()
        yield from range(5)

    given = pairs.ahead(items())
    assert begun.wait(60)
    assert list(given) == [0, 1, 2, 3, 4]


def test_a_neighbour_of_a_poisoned_pair_keeps_its_score(workdir, monkeypatch):
    poison(monkeypatch, where=smallest, alone=False)
    manifest = teacher.score_chunks(settings("neighbour", quarantine=1), workdir)
    assert manifest.facts["pairs"] == 190 and not manifest.facts["quarantined"]


def test_what_stops_the_writing_of_a_chunk_stops_the_job(workdir, monkeypatch):
    """Chunks are written while the next is scored; none is lost in silence."""
    real = jobs.save_chunk

    def full(job, number, *rest, **facts):
        if number == 3:
            raise errors.StageError("no space left on the device")
        real(job, number, *rest, **facts)

    monkeypatch.setattr(jobs, "save_chunk", full)
    with pytest.raises(errors.StageError, match="no space left"):
        teacher.score_chunks(settings("full"), workdir)
    missing = job_of(workdir, "full").missing()
    assert 3 in missing and not {0, 1, 2} & set(missing)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def pair(number, **change):
    fields = dict(query_id="q", document_id=f"d{number}", query="bada", title="t")
    return {**fields, "text": f"word {number}", **change}


def test_pairs_that_were_never_prepared(workdir, tmp_path):
    rows = [pair(i) for i in range(50)]
    rows[7] = pair(7, query="x" * 200)  # no room for a document
    rows[9] = pair(9, text="", title="")
    rows[11] = pair(3)  # twice
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    stage = settings(
        "outside", input=str(tmp_path / "pairs.jsonl"), output=str(tmp_path / "out")
    )
    with pytest.raises(DataError, match="00000-of-00003: 2 pairs.*pair 9,.*visible|d9"):
        teacher.score_chunks(stage, workdir)
    stage = dataclasses.replace(stage, quarantine=3)
    manifest = teacher.score_chunks(stage, workdir)
    assert manifest.facts["pairs"] == 47 and manifest.facts["quarantined"] == 3
    bad = [
        json.loads(line)
        for line in (tmp_path / "out" / "quarantined.jsonl").read_text().splitlines()
    ]
    found = {one["pair"]: one["reason"] for one in bad}
    assert "pairs.jsonl:10" in found[9] and "pair 3 too" in found[11]
    assert "no room for a document in 32 tokens" in found[7]
    assert teacher.verify_chunks(stage, workdir).pairs == 47
    # The same texts score the same, wherever they come from.
    table = pq.read_table(tmp_path / "out" / "chunks")
    assert table.column_names == ["pair", "query_id", "document_id", "score"]
    assert table["pair"].to_pylist() == [i for i in range(50) if i not in (7, 9, 11)]
    # What was scored is no longer what the input says.
    write_jsonl(tmp_path / "pairs.jsonl", [*rows[:20], pair(77), *rows[21:]])
    with pytest.raises(errors.StageError, match="jsonl"):
        teacher.verify_chunks(stage, workdir)


def test_distillation_refuses_scores_of_another_input(workdir, tmp_path):
    write_jsonl(tmp_path / "pairs.jsonl", [pair(i) for i in range(4)])
    stage = settings("foreign", input=str(tmp_path / "pairs.jsonl"))
    teacher.score_chunks(stage, workdir)
    student = config.Train(
        **STAGE,
        name="distill",
        scores="foreign",
        model=config.Encoder(num_layers=1, embed_dim=16, num_heads=2, mlp_dim=16),
        objective=config.Distillation(),
        optim=config.Optim(learning_rate=1e-3, warmup=0),
        batch=config.Batch(size=8, list_size=4),
        loop=config.Loop(steps=1),
    )
    with pytest.raises(errors.StageError, match="holds those of another input"):
        train(student, workdir)


def test_the_command_line(workdir, tmp_path, capsys):
    """Scores, tells how far it is, and proves, as a user types it."""
    file = tmp_path / "score.py"
    file.write_text(
        "import pickle\n"
        "def get_config(variant=''):\n"
        f"    return pickle.loads({pickle.dumps(settings('c'))})"
    )
    common = ["--config", str(file), "--workdir", str(workdir)]
    score.main([*common, "--config.process_index=0", "--config.process_count=2"])
    assert "5 of 10 chunks are left to others" in capsys.readouterr().out
    score.main(["status", str(workdir / "c")])
    assert "5 of 10 done, 5 missing" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: .*5 of 10 chunks are missing"):
        score.main([*common, "--verify"])
    score.main(common)
    capsys.readouterr()
    score.main([*common, "--verify"])
    shown = capsys.readouterr().out
    assert "verified: 190 pairs have exactly one finite score each, 0 were" in shown
    with pytest.raises(SystemExit, match="error: .*other settings: chunk_pairs: 20"):
        score.main([*common, "--config.chunk_pairs=7"])
    with pytest.raises(SystemExit, match="error: .*holds no scoring job"):
        score.main(["verify", str(tmp_path)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(process_index=2, process_count=2), "from 0 to process_count - 1"),
        (dict(process_index=1), "give both"),
        (dict(process_count=3), "give both"),
        (dict(quarantine=-1), "quarantine must be 0 or more"),
        (dict(chunk_pairs=0), "chunk_pairs must be above 0"),
    ],
)
def test_settings_that_cannot_work(fields, message):
    with pytest.raises(config.ConfigError, match=message):
        settings("x", **fields)
