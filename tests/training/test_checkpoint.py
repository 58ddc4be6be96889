"""Checkpoints: whole or not there; what is kept; what a damaged folder says."""

import dataclasses
import errno
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranker import manifests
from ranker.errors import StageError
from ranker.training import checkpoint
from ranker.training.checkpoint import Checkpoints
from ranker.training.failure import load_failure, write_failure
from ranker.training.progress import Progress, first_wrong
from ranker.training.reporter import Reporter
from ranker.training.state import TrainState


def state_at(step):
    return TrainState(
        step=jnp.int32(step),
        params={"w": jnp.full((4, 3), step, jnp.float32)},
        opt_state={"mu": jnp.full((4, 3), -step, jnp.float32)},
        key=jax.random.key(7),
        sound=jnp.ones((), bool),
    )


def abstract_params():
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {"w": jax.ShapeDtypeStruct((4, 3), jnp.float32, sharding=device)}


def saved(folder, steps, *, keep=9, metric="none", values=()):
    checkpoints = Checkpoints(folder, keep=keep, best_metric=metric)
    for number, step in enumerate(steps):
        metrics = {metric: values[number]} if values else {}
        checkpoints.save(state_at(step), step, {"at": step}, metrics)
    checkpoints.wait()
    return checkpoints


def test_a_state_comes_back_with_its_progress(tmp_path):
    saved(tmp_path, [3, 5]).close()
    state, progress = Checkpoints(tmp_path, keep=9).restore(state_at(0))
    assert progress == {"at": 5} and int(state.step) == 5
    np.testing.assert_array_equal(state.params["w"], 5)
    np.testing.assert_array_equal(state.opt_state["mu"], -5)
    assert (
        jax.random.key_data(state.key) == jax.random.key_data(state_at(0).key)
    ).all()


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("dev_ndcg@5", [0.1, 0.9, 0.3, 0.9], 2),
        ("dev_language", [3.0, 1.0, 2.0, 2.0], 2),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, metric, values, best):
    checkpoints = saved(tmp_path, [1, 2, 3, 4], keep=1, metric=metric, values=values)
    assert checkpoints.steps == [best, 4]
    assert checkpoints.best() == (best, values[best - 1])
    worse = checkpoints.is_better({metric: values[0]})
    assert not worse and not checkpoints.is_better({})
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step_?")) == [
        f"step_{best}",
        "step_4",
    ]


def test_so_many_of_the_newest_are_kept(tmp_path):
    assert saved(tmp_path, [1, 2, 3, 4, 5], keep=2).steps == [4, 5]


def test_the_best_is_sought_among_records_that_can_be_read(tmp_path):
    checkpoints = saved(
        tmp_path, [1, 2, 3], metric="dev_ndcg@5", values=[0.1, 0.9, 0.3]
    )
    checkpoints.save(state_at(4), 4, {}, {})  # was not measured
    checkpoints.wait()
    assert checkpoints.best() == (2, 0.9)
    record = tmp_path / "checkpoints" / "step_2.json"
    record.write_text(record.read_text()[:-9])
    assert checkpoints.best() == (3, 0.3)
    record.unlink()
    record.mkdir()
    assert checkpoints.best() == (3, 0.3)
    assert checkpoints.is_better({"dev_ndcg@5": 0.31})
    assert not checkpoints.is_better({"dev_ndcg@5": 0.3})  # the first of equals


def test_a_checkpoint_is_amended_by_what_was_measured_later(tmp_path):
    checkpoints = saved(
        tmp_path, [1, 2, 3], keep=1, metric="dev_ndcg@5", values=[0.5, 0.2, 0.3]
    )
    assert checkpoints.steps == [1, 3]
    checkpoints.amend(3, {"at": 33}, {"dev_ndcg@5": 0.9})
    assert checkpoints.best() == (3, 0.9) and checkpoints.steps == [3]
    _, progress = Checkpoints(tmp_path).restore(state_at(0))
    assert progress == {"at": 33}


def test_a_step_may_be_saved_again(tmp_path):
    checkpoints = saved(tmp_path, [3, 3])
    checkpoints.save(state_at(3), 3, {"at": 4}, {})
    checkpoints.close()
    _, progress = Checkpoints(tmp_path).restore(state_at(0))
    assert progress == {"at": 4}


def test_nothing_saved_is_nothing_restored(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=9)
    assert checkpoints.restore(state_at(0)) is None
    assert checkpoints.latest is None and checkpoints.best() is None
    with pytest.raises(StageError, match="no checkpoint that is whole at its end"):
        checkpoints.restore_params(abstract_params())


def test_without_a_manifest_the_newest_is_the_result(tmp_path):
    saved(tmp_path, [3, 5]).close()
    found = Checkpoints(tmp_path).restore_params(abstract_params())
    np.testing.assert_array_equal(found["w"], 5)


def test_parameters_do_not_depend_on_the_rest_of_the_state(tmp_path, capsys):
    saved(tmp_path, [3, 5]).close()
    root = tmp_path / "checkpoints"
    victim = max(_files(root / "step_5" / "train"), key=lambda p: p.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1])
    found = Checkpoints(tmp_path).restore_params(abstract_params())
    np.testing.assert_array_equal(found["w"], 5)
    assert not capsys.readouterr().out
    # What both need is looked at by both.
    whole = root / "step_5" / "_CHECKPOINT_METADATA"
    whole.write_bytes(whole.read_bytes() + b" ")
    with pytest.raises(StageError, match="whole at step 5"):
        Checkpoints(tmp_path).restore_params(abstract_params())
    assert "step 5 is damaged: _CHECKPOINT_METADATA" in capsys.readouterr().out
    state, _ = Checkpoints(tmp_path).restore(state_at(0))
    assert int(state.step) == 3


def test_a_checkpoint_without_its_record_is_set_aside(tmp_path):
    saved(tmp_path, [3, 5]).close()
    root, notes = tmp_path / "checkpoints", []
    (root / "step_5.damaged" / "old").mkdir(parents=True)
    (root / "step_5.json").unlink()
    checkpoints = Checkpoints(tmp_path, note=notes.append)
    assert checkpoints.newest_whole([3, 5], ("params",)) == 3
    assert "step 5 is damaged: step_5.json is missing" in notes[0]
    assert notes[1] == f"it is set aside as {root / 'step_5.damaged'}"
    assert (root / "step_5.damaged" / "params").is_dir()
    assert not (root / "step_5").exists()
    # A later run leaves what was set aside.
    (root / "step_notes").write_text("mine")
    Checkpoints(tmp_path, keep=9)
    assert (root / "step_5.damaged").is_dir() and (root / "step_notes").is_file()


def test_a_record_without_its_checkpoint_is_deleted(tmp_path):
    saved(tmp_path, [3, 5]).close()
    root, notes = tmp_path / "checkpoints", []
    (root / "step_5").rename(root / "elsewhere")
    checkpoints = Checkpoints(tmp_path, note=notes.append)
    assert checkpoints.newest_whole([3, 5], ("params",)) == 3
    assert len(notes) == 1 and checkpoints.steps == [3]


def test_what_cannot_be_set_aside_is_said(tmp_path, monkeypatch):
    saved(tmp_path, [5]).close()
    record, notes = tmp_path / "checkpoints" / "step_5.json", []
    record.unlink()
    record.mkdir()  # neither read nor deleted as a file
    checkpoints = Checkpoints(tmp_path, note=notes.append)
    assert checkpoints.newest_whole([5], ("params",)) is None
    assert "step 5 is damaged: step_5.json: " in notes[0]
    assert "step_5 cannot be set aside: Is a directory" in notes[1]


def test_another_model_is_told_from_a_damaged_checkpoint(tmp_path, monkeypatch):
    """By what is behind orbax's own error."""
    saved(tmp_path, [3]).close()

    def load(*_):
        try:
            raise KeyError("bias")
        except KeyError as error:
            raise ValueError("something went wrong") from error

    monkeypatch.setattr(checkpoint.ocp, "load_checkpointables", load)
    with pytest.raises(StageError, match="step_3 cannot be restored: 'bias'.*settings"):
        Checkpoints(tmp_path).restore(state_at(0))
    assert Checkpoints(tmp_path).steps == [3]


def _files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_damaged_one_is_named_and_the_one_before_used(tmp_path, capsys):
    saved(tmp_path, [3, 5, 7]).close()
    root = tmp_path / "checkpoints"
    victim = max(_files(root / "step_7" / "train"), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 4
    victim.write_bytes(bytes(content))
    (root / "step_5.json").write_text((root / "step_5.json").read_text()[:-9])
    checkpoints = Checkpoints(tmp_path, keep=9)
    state, progress = checkpoints.restore(state_at(0))
    assert progress == {"at": 3} and int(state.step) == 3
    shown = capsys.readouterr().out
    assert "step 7 is damaged: train/" in shown and "another content" in shown
    assert "step 5 is damaged: step_5.json" in shown
    assert (root / "step_7.damaged").is_dir() and checkpoints.steps == [3]


def test_a_damaged_result_is_no_result(tmp_path, capsys):
    """Another checkpoint is never read in its place; the stage goes on instead."""
    saved(tmp_path, [3, 5]).close()
    facts = manifests.TrainFacts(tokenizer="t", template="u", vocab_size=9)
    manifest = manifests.Manifest(
        kind="sft", settings={}, inputs={}, facts=facts.to_dict()
    )
    results = manifests.TrainResults(metrics={}, steps=7, checkpoint=5)
    manifest.finish(tmp_path, results)
    params = abstract_params()
    checkpoints = Checkpoints(tmp_path)
    np.testing.assert_array_equal(checkpoints.restore_params(params)["w"], 5)
    [victim, *_] = _files(tmp_path / "checkpoints" / "step_5" / "params" / "d")
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(StageError, match="no checkpoint that is whole at step 5; run"):
        checkpoints.restore_params(params)
    assert not manifests.load_manifest(tmp_path).done and checkpoints.latest == 3


def test_the_result_is_the_checkpoint_that_the_manifest_names(tmp_path):
    """With `loop.result = "best"` it is not the newest."""
    values = [0.1, 0.9, 0.3]
    saved(tmp_path, [3, 5, 7], metric="dev_ndcg@5", values=values).close()
    facts = manifests.TrainFacts(tokenizer="t", template="u", vocab_size=9)
    manifest = manifests.Manifest(
        kind="sft", settings={}, inputs={}, facts=facts.to_dict()
    )
    results = manifests.TrainResults(metrics={}, steps=7, checkpoint=5)
    manifest.finish(tmp_path, results)
    checkpoints = Checkpoints(tmp_path)
    found = checkpoints.restore_params(abstract_params())
    np.testing.assert_array_equal(found["w"], 5)
    assert checkpoints.latest == 7


def test_what_a_killed_run_left_is_deleted_and_strangers_are_not(tmp_path):
    saved(tmp_path, [3]).close()
    root = tmp_path / "checkpoints"
    for name in (
        "step_5/params",
        "step_6.orbax-checkpoint-tmp/train",
        "step_3.orbax-checkpoint-tmp/params",
        "step_7/orbax-checkpoint-manifest",
        "1000",
        "mine",
    ):
        (root / name).mkdir(parents=True)
    (root / "1000" / "notes.txt").write_text("mine")
    checkpoints = Checkpoints(tmp_path, keep=9)
    assert checkpoints.latest == 3
    assert {p.name for p in root.iterdir()} == {"step_3", "step_3.json", "1000", "mine"}
    (root / "step_8").mkdir()
    (root / "step_8" / "thesis.txt").write_text("mine")
    with pytest.raises(StageError, match="step_8 is where a checkpoint goes"):
        Checkpoints(tmp_path, keep=9)
    assert (root / "step_8" / "thesis.txt").is_file()


def test_a_full_disk_is_met_with_a_sentence(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, [3])

    class Failing:
        def result(self):
            raise ValueError("x") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(
        checkpoint.ocp, "save_checkpointables_async", lambda *a, **k: Failing()
    )
    checkpoints.save(state_at(5), 5, {}, {})
    with pytest.raises(StageError, match="No space left.*resumes from step 3"):
        checkpoints.wait()
    checkpoints.wait()  # has been said
    assert checkpoints.latest == 3
    first = Checkpoints(tmp_path / "first", keep=1)
    first.save(state_at(5), 5, {}, {})
    with pytest.raises(StageError, match="step 5 .*it resumes from the beginning"):
        first.close()

    def fails(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(checkpoint.ocp, "save_checkpointables_async", fails)
    with pytest.raises(StageError, match="step 7 .*Read-only .*from step 3"):
        checkpoints.save(state_at(7), 7, {}, {})


# --- progress, alarms, failures, the log ---


def _values(loss=1.0, grads=1.0, weight=3.0, collapsed=0.0):
    return {
        "loss": loss,
        "l2_grads": grads,
        "weight_ranknet": weight,
        "weight_collapsed": 0.0,
        "collapsed": collapsed,
        "tokens": 5.0,
    }


def test_progress_survives_json_to_the_bit():
    progress = Progress()
    progress.add(
        [_values(loss=float(np.float32(0.1) + np.float32(i))) for i in range(3)]
    )
    again = Progress(**json.loads(json.dumps(progress.to_dict())))
    assert again == progress and again.report() == progress.report()
    assert progress.window == [] and "tokens" not in progress.last


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (_values(weight=0.0), "nothing has contributed to the loss 'ranknet'"),
        (_values(collapsed=1.0), "the model has collapsed"),
    ],
)
def test_a_run_that_learns_nothing_is_stopped(values, message):
    progress = Progress()
    progress.add([values] * 4)
    progress.check_idle(4, 5)
    progress.check_idle(4, 0)
    with pytest.raises(StageError, match=f"for 4 steps up to step 4 .*{message}"):
        progress.check_idle(4, 4)
    progress.add([_values()])
    progress.check_idle(5, 1)


def test_numbers_that_are_not_finite_are_found():
    good, nan, inf = _values(), _values(loss=float("nan")), _values(grads=float("inf"))
    assert first_wrong([good, good]) is None
    assert first_wrong([good, nan, good]) == 1 and first_wrong([inf]) == 0


def test_a_failure_is_written_and_read(tmp_path):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Pair:
        tokens: np.ndarray
        labels: np.ndarray

    batch = Pair(np.arange(6).reshape(1, 2, 3), np.ones((1, 2, 1)))
    facts = {"metrics": {"loss": float("nan")}, "records": ["q1", "q2"]}
    folder = write_failure(tmp_path, 12, batch, facts)
    report, arrays = load_failure(folder)
    assert report["step"] == 12 and report["metrics"] == {"loss": "nan"}
    assert report["records"] == ["q1", "q2"]
    np.testing.assert_array_equal(arrays["tokens"], batch.tokens)


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path):
    reporter = Reporter(tmp_path, "x", total=9, unit="step")
    for step in (1, 2, 4, 6):
        reporter.record(step, {"loss": 1.0 / step})
    reporter.close()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 2, "lo\xff')
    reporter = Reporter(tmp_path, "x", total=9, unit="step")
    reporter.resume(4, measured=4)
    reporter.record(5, {"loss": 0.2})
    reporter.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [one["step"] for one in lines] == [1, 2, 4, 5]


@pytest.mark.parametrize("count", [1, 3, 4])
def test_readers_are_dealt_about_as_many_bytes_each(count):
    sizes = [700, 1, 690, 2, 710, 30, 705, 0, 5]
    files = {f"d/{i}": [size, "digest"] for i, size in enumerate(sizes)}
    shares = checkpoint.dealt(files, count)
    assert sorted(sum(shares, [])) == sorted(files)
    totals = [sum(files[name][0] for name in share) for share in shares]
    # The largest file is what one may have beyond another.
    assert max(totals) - min(totals) <= max(sizes)
    if count == 4:  # of 2,843 bytes in all
        assert max(totals) <= 720
    # In another order of the record, as JSON may have it, they are the same.
    again = dict(sorted(files.items(), reverse=True))
    assert checkpoint.dealt(again, count) == shares
