"""A run that is killed ends as one that is not; a file that is damaged is found out.

A run by one process (alone) and one by two (together) are killed, and both end as one
process does that is not. The numbers of CI are small. The full ones:

    RANKER_CHAOS_KILLS=20 RANKER_CHAOS_KILLS_TOGETHER=20 RANKER_DAMAGE_CASES=400 \
        pytest --all -n 0 tests/chaos

RANKER_CHAOS_KILLS, RANKER_CHAOS_KILLS_TOGETHER: how often each stage is killed.
RANKER_DAMAGE_CASES: how many files are damaged. RANKER_CHAOS_SEED: another draw of
moments and of damages. Each kill is printed with what it is drawn from.
"""

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from orbax.checkpoint import v1 as ocp

from ranker import config, errors, manifests, sharding, storage
from ranker.data.prepare import Prepared, prepare
from ranker.errors import DataError
from ranker.training.checkpoint import Checkpoints
from ranker.training.reporter import Reporter
from ranker.training.state import abstract_like
from ranker.training.trained import load_trained

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import worker  # noqa: E402

KILLS = {
    1: int(os.environ.get("RANKER_CHAOS_KILLS", 1)),
    2: int(os.environ.get("RANKER_CHAOS_KILLS_TOGETHER", 1)),
}
CASES = int(os.environ.get("RANKER_DAMAGE_CASES", 60))
SEED = int(os.environ.get("RANKER_CHAOS_SEED", 0))
TRAINED = ("cpt", "sft", "distill")
# Orbax warns where it is not told how to lay out what it loads, which is as saved here.
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
# What may differ between two runs.
CLOCK = (
    "time",
    "tokens_per_second",
    "input_share",
    "seconds_input",
    "seconds_evaluation",
    "seconds_saving",
    "memory_peak",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Runs the worker with its arguments; compiled programs are kept between runs."""
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

    def run(*arguments):
        command = [sys.executable, worker.__file__, *map(str, arguments)]
        subprocess.run(command, env=environment, check=True)

    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory, work):
    """A folder with what has come of one process: undisturbed, and killed."""
    folder = tmp_path_factory.mktemp("alone")
    work(folder, KILLS[1], SEED)
    return folder


@pytest.fixture(scope="module")
def together(alone, tmp_path_factory, work):
    """A folder with what has come of one process, and of two that were killed."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "clean").symlink_to(alone / "clean")
    shutil.copy(alone / "seconds", folder)
    work(folder, KILLS[2], SEED, 2)
    return folder


@pytest.fixture(scope="module", params=["alone", "together"])
def runs(request):
    return request.getfixturevalue(request.param)


def test_every_stage_was_killed_and_the_run_ended(alone, together):
    for folder, kills in ((alone, KILLS[1]), (together, KILLS[2])):
        ends = json.loads((folder / "kills.json").read_text())
        assert ends.pop()[-1] == 0
        assert [stage for stage, _, status in ends if status == -9] == [
            stage for stage in worker.STAGES for _ in range(kills)
        ]


@pytest.mark.parametrize("stage", TRAINED)
def test_checkpoints_are_those_of_a_run_that_was_not_killed(runs, stage):
    clean, killed = runs / "clean" / stage, runs / "killed" / stage
    assert manifests.load_manifest(clean).facts == manifests.load_manifest(killed).facts
    steps = Checkpoints(clean).steps
    # The clean run's last ones; a killed one may have kept more for a while.
    assert steps and set(steps) <= set(Checkpoints(killed).steps)
    for step in steps:
        records, states = [], []
        for folder in (clean, killed):
            at = folder / "checkpoints"
            records.append(storage.read_sealed(at / f"step_{step}.json"))
            # Onto the devices of the first, whatever those that it was saved on.
            wanted = abstract_like(states[0]) if states else None
            path = str(at.resolve() / f"step_{step}")
            states.append(ocp.load_checkpointables(path, wanted))
        assert records[0]["progress"] == records[1]["progress"]
        assert records[0]["metrics"] == records[1]["metrics"]
        a, b = (jax.tree_util.tree_leaves_with_path(state) for state in states)
        assert len(a) == len(b) > 20
        for (path, x), (_, y) in zip(a, b, strict=True):
            if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
                x, y = jax.random.key_data(x), jax.random.key_data(y)
            np.testing.assert_array_equal(x, y, err_msg=str(path))


@pytest.mark.parametrize("stage", TRAINED)
def test_the_log_has_each_line_once(runs, stage):
    logs = []
    for run in ("clean", "killed"):
        lines = (runs / run / stage / "metrics.jsonl").read_text().splitlines()
        values = [json.loads(line) for line in lines]
        logs.append(
            [{k: v for k, v in one.items() if k not in CLOCK} for one in values]
        )
    assert logs[0] == logs[1]
    assert [one["step"] for one in logs[0] if "loss" in one][:3] == [1, 3, 6]


def test_scores_runs_and_export_are_the_same(runs):
    clean, killed = runs / "clean", runs / "killed"
    assert _scores(clean) == _scores(killed) and len(_scores(clean)) == 64
    names = ["summary.json", *_names(clean, "evaluate/*.trec", "export/*.*")]
    assert len(names) > 5
    for name in names:
        if not name.endswith("manifest.json"):
            assert (clean / name).read_bytes() == (killed / name).read_bytes(), name


def _names(folder, *patterns):
    return sorted(
        str(path.relative_to(folder)) for one in patterns for path in folder.glob(one)
    )


def _scores(workdir):
    rows = []
    for path in sorted((workdir / "scores").rglob("*.parquet")):
        table = pq.read_table(path, columns=["query_id", "document_id", "score"])
        rows += [tuple(row.values()) for row in table.to_pylist()]
    return sorted(rows)


# --- damage ---


def _trained(stage):
    def read(workdir):
        settings = worker.pipeline()
        prepared = prepare(settings.data, settings.reading, workdir)
        mesh = sharding.make_mesh(config.Mesh())
        found = load_trained(
            workdir, stage, prepared, mesh, kinds=("cpt", "sft", "distill"), by="a test"
        )
        return [np.asarray(x).tobytes() for x in jax.tree.leaves(found.params)]

    return read


def _resumed(workdir):
    """What a resumed stage would find: the newest checkpoint that is whole."""
    checkpoints = Checkpoints(workdir / "cpt")
    step = checkpoints.newest_whole(checkpoints.steps, ("params", "train"))
    if step != 10:
        raise errors.StageError(f"resumes from {step}")
    at = workdir / "cpt" / "checkpoints" / f"step_{step}"
    state = ocp.load_checkpointables(str(at.resolve()))
    return [_bytes(leaf) for leaf in jax.tree.leaves(state)]


def _bytes(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def _manifests(workdir):
    return [
        manifests.load_manifest(path.parent)
        for path in sorted(workdir.glob("*/manifest.json"))
    ]


def _outputs(stage):
    def read(workdir):
        manifest = manifests.load_manifest(workdir / stage)
        if damage := manifests.find_output_damage(workdir / stage, manifest):
            raise errors.StageError(damage)

    return read


def _records(workdir):
    """Large record files are not digested when looked at: their format must tell."""
    settings = worker.pipeline()
    manifest = manifests.load_manifest(workdir / "prepare")
    prepared = Prepared(workdir / "prepare", manifest, settings.reading)
    return [
        [repr(source[i]) for i in range(len(source))]
        for source in (
            prepared.corpus(),
            *(
                prepared.lists(split)
                for split in ("train", "unlabelled", "dev", "test")
            ),
            prepared.clicks("train"),
        )
    ]


def _metrics(workdir):
    """A resumed stage reads its log; nobody else does."""
    reporter = Reporter(workdir / "cpt", "cpt", total=10, unit="step")
    reporter.resume(10, measured=10)
    reporter.close()


# What is damaged -> how its readers read it.
KINDS = {
    "result": ("sft/checkpoints/**/*", _trained("sft")),
    "newest": ("cpt/checkpoints/**/*", _resumed),
    "manifest": ("*/manifest.json", _manifests),
    "prepared": ("prepare/**/*", _outputs("prepare")),
    "records": ("prepare/**/*.array_record*", _records),
    "runs": ("evaluate/*.trec", _outputs("evaluate")),
    "export": ("export/*", _outputs("export")),
    "metrics": ("cpt/metrics.jsonl", _metrics),
}


def _damage(path, generator):
    """Flips a bit, cuts the file, empties it, or writes zeros over a part."""
    content = bytearray(path.read_bytes())
    how = generator.choice(["flip", "flip", "cut", "empty", "zeros"])
    at = generator.randrange(len(content)) if content else 0
    if how == "flip" and content:
        content[at] ^= 1 << generator.randrange(8)
    elif how == "zeros":
        content[at : at + 64] = bytes(len(content[at : at + 64]))
    else:
        content = content[: at if how == "cut" else 0]
    path.write_bytes(bytes(content))
    return how


def test_damage_is_detected_or_harmless(alone, tmp_path):
    generator = random.Random(SEED)
    detected = harmless = 0
    for kind, (pattern, read) in KINDS.items():
        expected = read(alone / "clean")
        files = [p for p in sorted((alone / "clean").glob(pattern)) if p.is_file()]
        assert files, pattern
        for number in range(-(-CASES // len(KINDS))):
            victim = generator.choice(files).relative_to(alone / "clean")
            copy = tmp_path / "copy"
            shutil.copytree(alone / "clean", copy)
            before = (copy / victim).read_bytes()
            how = _damage(copy / victim, generator)
            same = (copy / victim).read_bytes() == before
            case = f"{kind} {number}: {victim} ({how})"
            try:
                found = read(copy)
            except (errors.StageError, DataError):
                assert not same, case
                detected += 1
            else:
                assert found == expected, case
                harmless += 1
            shutil.rmtree(copy)
    print(f"{detected} detected, {harmless} harmless")
    assert detected > CASES // 4 and harmless > 0
