"""What a stage's folder says of itself: sealed, locked, and never thrown away."""

import dataclasses
import errno
import fcntl
import subprocess
import sys

import pytest

from ranker import manifests, storage
from ranker.errors import StageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted(manifests.Facts):
    """What a stage of these tests finds out."""

    count: float


def test_a_second_run_is_told_who_works_there(tmp_path):
    manifest = manifests.Manifest(kind="sft", settings={}, inputs={})
    code = (
        "import sys, pathlib; from ranker import manifests\n"
        "with manifests.lock(pathlib.Path(sys.argv[1]), 'sft'):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,  # open as long as this process needs the other
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None
    with other, other.stdout:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(StageError, match=f"worked on by process {other.pid} on"):
            with manifests.claim(tmp_path / "sft", manifest, replace=True):
                pass
        other.kill()
    with manifests.claim(tmp_path / "sft", manifest, replace=True) as todo:
        assert todo  # the lock went with the process


def test_the_first_lock_makes_the_workdir(tmp_path):
    workdir = tmp_path / "runs" / "first"
    with manifests.lock(workdir, "sft"):
        assert workdir.is_dir()


def test_a_lock_is_held_against_the_same_process_too(tmp_path):
    with manifests.lock(tmp_path, "sft"):
        with pytest.raises(StageError, match=r"sft is worked on by process \d+ on"):
            with manifests.lock(tmp_path, "sft"):
                pass


def test_a_run_that_waits_says_so_and_then_has_the_lock(tmp_path, monkeypatch, capsys):
    asked = []

    def flock(file, how):
        asked.append(how)
        if how & fcntl.LOCK_NB:
            raise BlockingIOError

    monkeypatch.setattr(manifests.fcntl, "flock", flock)
    with manifests.lock(tmp_path, "sft", wait=True):
        said = f"[sft] {tmp_path}/sft is worked on by another run: waiting for it\n"
        assert capsys.readouterr().out == said
        assert asked == [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX]


@pytest.mark.parametrize(
    ("number", "runs"),
    [
        (errno.ENOLCK, True),
        (errno.ENOTSUP, True),
        (errno.ENOSYS, True),
        (errno.EIO, False),
    ],
)
def test_a_file_system_without_locks_is_named_and_used(
    tmp_path, monkeypatch, capsys, number, runs
):
    def flock(file, how):
        raise OSError(number, "no")

    monkeypatch.setattr(manifests.fcntl, "flock", flock)
    if not runs:
        with pytest.raises(OSError, match="no"), manifests.lock(tmp_path, "sft"):
            pass
        return
    with manifests.lock(tmp_path, "sft"):
        assert f"[sft] the file system of {tmp_path} has no locks" in (
            capsys.readouterr().out
        )


def test_a_list_is_checked_by_what_it_holds():
    @dataclasses.dataclass
    class Named:
        names: list[str]

    manifests.check_types(Named(["a", "b"]))
    with pytest.raises(ValueError, match="its field 'names' is not of type"):
        manifests.check_types(Named(["a", 1]))  # type: ignore[list-item]


def test_a_replaced_stage_is_moved_aside_with_all_that_it_holds(tmp_path, capsys):
    folder = tmp_path / "sft"
    old = manifests.Manifest(kind="sft", settings={"steps": 1}, inputs={})
    new = manifests.Manifest(kind="sft", settings={"steps": 2}, inputs={})
    old.finish(folder)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "weights").write_text("hours of work")
    with pytest.raises(StageError, match="other settings: steps: 1 -> 2"):
        manifests.is_done(folder, new)
    assert manifests.is_done(folder, old)
    assert not manifests.is_done(folder, new, replace=True) and not folder.exists()
    aside = tmp_path / f"sft.{old.key}"
    assert (aside / "checkpoints" / "weights").read_text() == "hours of work"
    assert manifests.load_manifest(aside) == dataclasses.replace(old, done=True)
    assert f"runs again (steps: 1 -> 2); the old one is {aside}" in (
        capsys.readouterr().out
    )


def test_manifests_are_sealed(tmp_path):
    manifest = manifests.Manifest(kind="sft", settings={"a": 1}, inputs={})
    manifest.finish(tmp_path, Counted(count=0.5))
    path = tmp_path / "manifest.json"
    assert manifests.load_manifest(tmp_path).facts == {"count": 0.5}
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(StageError, match="its digest does not fit"):
        manifests.load_manifest(tmp_path)


def made(kind="sft", **fields):
    return manifests.Manifest(kind=kind, **{"settings": {}, "inputs": {}, **fields})


def test_a_key_is_of_kind_settings_and_inputs_alone():
    one = made(settings={"steps": 1}, inputs={"cpt": "a"})
    others = [
        made("cpt", settings={"steps": 1}, inputs={"cpt": "a"}),
        made(settings={"steps": 2}, inputs={"cpt": "a"}),
        made(settings={"steps": 1}, inputs={"cpt": "b"}),
    ]
    assert len({x.key for x in (one, *others)}) == 4
    told = dataclasses.replace(one, facts={"loss": 1.0}, done=True, version="0")
    assert told.key == one.key


def test_what_a_stage_finds_out_at_its_end_holds(tmp_path):
    begun = made(facts={"count": None, "vocab_size": 9})
    done = begun.finish(tmp_path, Counted(count=0.5))
    assert done.facts == {"count": 0.5, "vocab_size": 9}
    assert manifests.load_manifest(tmp_path) == done and done.done


def test_facts_that_are_zero_are_kept_and_none_is_left_out():
    facts = manifests.ScoreFacts(teacher="sft", quarantined=0)
    found = facts.to_dict()
    assert found["quarantined"] == 0 and "pairs" not in found
    assert (found["mean"], found["std"]) == (0, 1)  # raw scores
    assert manifests.ScoreFacts.of({**found, "unknown": 1}) == facts
    with pytest.raises(StageError, match="another version of this package.*teacher"):
        manifests.ScoreFacts.of({"mean": 1.0})


def test_a_field_of_another_type_is_named():
    facts = manifests.TrainFacts(tokenizer="a", template="b", vocab_size=9)
    manifests.check_types(facts)
    for wrong in (True, 9.0, "9"):
        with pytest.raises(ValueError, match="its field 'vocab_size'"):
            manifests.check_types(dataclasses.replace(facts, vocab_size=wrong))
    manifests.check_types(dataclasses.replace(facts, source={"path": 1}))
    with pytest.raises(ValueError, match="its field 'source' is not of type dict"):
        manifests.check_types(dataclasses.replace(facts, source="a"))
    with pytest.raises(ValueError, match="its field 'inputs'"):
        manifests.check_types(made(inputs={"cpt": 1}))


def test_a_lock_names_its_last_holder_alone(tmp_path):
    for _ in range(2):
        with manifests.lock(tmp_path, "sft"):
            pass
    said = (tmp_path / ".locks" / "sft").read_text()
    assert said.startswith("process ") and said.count("process") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields.pop("key"), "'key'"),
        (lambda fields: fields.pop("inputs"), "inputs"),
        (lambda fields: fields.update(more=1), "more"),
        (lambda fields: fields.update(done="yes"), "'done' is not of type bool"),
        (lambda fields: fields.update(kind=1), "'kind' is not of type str"),
    ],
)
def test_what_is_no_manifest_is_named_with_its_folder(tmp_path, change, message):
    fields = {"key": made().key, **dataclasses.asdict(made())}
    change(fields)
    storage.write_sealed(tmp_path / manifests.FILE, fields)
    with pytest.raises(StageError, match=f"{message}.*delete the folder {tmp_path}"):
        manifests.load_manifest(tmp_path)


def test_a_manifest_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    made().finish(tmp_path)

    def read(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(manifests, "read_sealed", read)
    with pytest.raises(StageError, match=r"manifest\.json is not .*Input/output error"):
        manifests.load_manifest(tmp_path)


def test_a_manifest_whose_key_is_another_is_refused(tmp_path):
    fields = dataclasses.asdict(made(settings={"steps": 1}))
    storage.write_sealed(tmp_path / manifests.FILE, {"key": made().key, **fields})
    with pytest.raises(StageError, match="its key does not fit its settings"):
        manifests.load_manifest(tmp_path)


def test_a_stage_that_is_needed_is_finished_and_of_a_kind_that_serves(tmp_path):
    def need(name, *kinds, **more):
        return manifests.require_stage(tmp_path, name, kinds=kinds, by="score", **more)

    with pytest.raises(StageError, match="'sft' .*does not contain one; it has no st"):
        need("sft", "sft")
    made().begin(tmp_path / "sft")
    with pytest.raises(StageError, match="it has sft. Run that"):
        need("cpt", "cpt")
    with pytest.raises(StageError, match="'sft', which has not finished"):
        need("sft", "sft")
    done = made().finish(tmp_path / "sft")
    with pytest.raises(StageError, match="needs a cpt or distill stage, .* is a sft"):
        need("sft", "cpt", "distill")
    assert need("sft", "cpt", "sft") == done
    planned = {"cpt": made("cpt", done=True)}
    assert need("cpt", "cpt", planned=planned) == planned["cpt"]


def test_a_stage_that_was_begun_is_not_done(tmp_path):
    made().begin(tmp_path)
    assert not manifests.is_done(tmp_path, made())
    assert not manifests.decide(tmp_path, made()).done
    made().finish(tmp_path)
    assert (
        manifests.is_done(tmp_path, made()) and manifests.decide(tmp_path, made()).done
    )


def test_a_stage_may_be_replaced_to_and_fro(tmp_path):
    folder = tmp_path / "sft"
    both = [made(settings={"steps": n}) for n in (1, 2)]
    for count, manifest in enumerate(both * 2):
        assert not manifests.is_done(folder, manifest, replace=True)
        manifest.finish(folder, Counted(count=count))
    assert manifests.load_manifest(folder).facts == {"count": 3}
    assert manifests.load_manifest(tmp_path / f"sft.{both[0].key}").facts == {
        "count": 2
    }


def test_a_damaged_stage_is_made_again(tmp_path, capsys):
    folder = tmp_path / "sft"
    folder.mkdir()
    (folder / "weights").write_text("good")
    done = made().finish(folder, files=manifests.outputs(folder))
    assert set(done.facts["files"]) == {"weights"}
    assert set(manifests.outputs(folder)) == {"weights"}  # not of itself
    with manifests.claim(folder, made(), replace=False) as todo:
        assert not todo
    (folder / "weights").write_text("evil")
    assert "weights" in manifests.decide(folder, made()).damage
    with manifests.claim(folder, made(), replace=False) as todo:
        assert todo and not manifests.load_manifest(folder).done
    assert "[sft] is damaged, and made again" in capsys.readouterr().out


def test_a_decision_is_of_what_the_folder_holds(tmp_path):
    folder = tmp_path / "sft"
    nothing = manifests.decide(folder, made())
    assert nothing.found is nothing.damage is None and not nothing.done
    folder.mkdir()
    (folder / "weights").write_text("good")
    done = made().finish(folder, files=manifests.outputs(folder))
    assert manifests.decide(folder, made()).found == done
    (folder / "weights").write_text("evil")
    assert not manifests.decide(folder, made()).done
    other = manifests.decide(folder, made(settings={"steps": 2}))
    assert not other.done and other.damage is None  # it is another's
    manifests.reopen(done, folder)
    assert manifests.decide(folder, made()).damage is None  # it is not trusted anyway


def test_large_files_are_left_to_their_own_checks(tmp_path):
    """Up to 16 MiB a change of content is seen, above it one of size."""
    for name, size in (("small", 2**24), ("large", 2**24 + 1)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    done = made().finish(tmp_path, files=manifests.outputs(tmp_path))
    for name, damage in (("large", None), ("small", "small has another content")):
        with (tmp_path / name).open("r+b") as file:
            file.write(b"evil")
        found = manifests.find_output_damage(tmp_path, done)
        assert found == damage or (damage and found.startswith(damage))
    with (tmp_path / "large").open("ab") as file:
        file.write(b"more")
    assert manifests.find_output_damage(tmp_path, done).startswith("large has 16777221")


def test_a_stage_is_written_once(tmp_path):
    folder, written = tmp_path / "prepare", []

    def write():
        written.append(made().finish(folder, Counted(count=1)))
        return written[-1]

    for _ in range(2):
        found = manifests.complete(folder, made(), write, replace=False)
        assert len(written) == 1 and found == written[0] and found.done
    with pytest.raises(StageError, match="other settings"):
        manifests.complete(folder, made(settings={"a": 1}), write, replace=False)


@pytest.mark.parametrize(
    ("kind", "says", "not_said"),
    [
        ("sft", "run the stage again: mv", "keep both"),
        ("score", "or keep both with --config.name=NAME; or name", "use what was"),
        ("prepare", "use what was prepared, run the same command without", "mv "),
    ],
)
def test_other_settings_come_with_the_command_that_works(
    tmp_path, kind, says, not_said
):
    made(kind).finish(tmp_path / "stage")
    with pytest.raises(StageError, match=says) as caught:
        manifests.is_done(tmp_path / "stage", made(kind, settings={"a": 1}))
    assert not_said not in str(caught.value)


def test_settings_are_flat_by_dotted_name():
    nested = {"optim": {"learning_rate": 0.1, "muon": {"b1": 1}}, "seed": 0}
    flat = {"optim.learning_rate": 0.1, "optim.muon.b1": 1, "seed": 0}
    assert manifests.flat_settings(nested) == flat


def test_changes_are_told_by_field_and_the_telling_ones_first(tmp_path):
    settings = {"seed": 0, "optim": {"b": (1, 2)}, "model": {"layers": 2}, "steps": 1}
    made(settings=settings, inputs={"cpt": "a"}).finish(tmp_path)
    old = manifests.load_manifest(tmp_path)
    assert manifests.changes(old, made(settings=settings, inputs={"cpt": "a"})) == []
    new = {"seed": 1, "optim": {"b": (1, 3)}, "model": {"layers": 3}, "steps": 2}
    changes = manifests.changes(old, made("cpt", settings=new, inputs={"cpt": "b"}))
    assert sorted(changes) == [
        "cpt: a -> b",
        "kind: sft -> cpt",
        "model.layers: 2 -> 3",
        "optim.b: [1, 2] -> [1, 3]",
        "seed: 0 -> 1",
        "steps: 1 -> 2",
    ]
    assert manifests.brief(changes) == (
        "kind: sft -> cpt, model.layers: 2 -> 3, steps: 1 -> 2 and 3 more"
    )
    assert manifests.brief(["seed: 0 -> 1"]) == "seed: 0 -> 1"
    # Of one group those of fewer dots come first; a long value is cut.
    inner, outer = "text.a.b.c: 1 -> 2", f"text.a: 1 -> {'x' * 300}"
    assert manifests.brief([inner, outer]) == f"{outer[:200]}, {inner}"
