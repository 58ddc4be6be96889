"""What a stage's folder says of itself: the settings and inputs that made it.

A stage's *key* is a digest of its settings and of the keys of its inputs. Equal keys
mean equal results, so a finished stage with the right key is not run again, and one
with another key is never mistaken for it.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import shutil
import socket
import time
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

import ranker
from ranker import config, processes
from ranker.config import Role
from ranker.errors import StageError
from ranker.storage import digest, file_digests, find_damage, read_sealed, write_sealed

FILE = "manifest.json"
PREPARE = "prepare"  # folder of the data, in every workdir


_READ_UP_TO = 1 << 24  # bytes of a file that is read whenever its stage is looked at
_LOCKS = ".locks"  # in the workdir, beside the stages, whose folders may be moved


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one stage says of itself."""

    kind: str  # prepare, cpt, sft, distill, score, evaluate or export
    settings: dict[str, Any]  # config fields that the result depends on
    inputs: dict[str, str]  # name of each input stage -> its key
    facts: dict[str, Any] = field(default_factory=dict)  # digests, sizes, results
    done: bool = False
    version: str = ranker.__version__  # of this package

    @property
    def key(self) -> str:
        """Digest of what the result depends on."""
        return digest([self.kind, self.settings, self.inputs])

    def save(self, folder: pathlib.Path) -> None:
        """Writes the manifest into the stage's folder, all or nothing."""
        folder.mkdir(parents=True, exist_ok=True)
        write_sealed(folder / FILE, {"key": self.key, **dataclasses.asdict(self)})

    def begin(self, folder: pathlib.Path) -> None:
        """Writes the manifest of a stage that has not finished, in one process."""
        processes.first(lambda: self.save(folder))

    def finish(
        self,
        folder: pathlib.Path,
        found: "Facts | None" = None,
        *,
        files: dict[str, list[Any]] | None = None,
    ) -> "Manifest":
        """Marks the stage as done, with what it found out, and saves it.

        Waits for all processes first: what they write is on disk before the manifest
        says so. The facts are those of the first process.

        Args:
          folder: of the stage.
          found: facts beside those that the manifest has.
          files: `outputs` of the folder, where damage to them is to be found.
        """
        processes.meet()
        facts = {**self.facts, **(found.to_dict() if found else {})}
        if files is not None:
            facts["files"] = files

        def write() -> "Manifest":
            done = dataclasses.replace(self, facts=facts, done=True)
            done.save(folder)
            return done

        return processes.first(write)


# --- what stages note of themselves ---


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Named values of a manifest; those that are None are left out."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Takes these facts out of a manifest's.

        Raises:
          StageError: when one is missing, as in a manifest of another version.
        """
        known = {one.name for one in dataclasses.fields(cls)}
        try:
            return cls(**{k: v for k, v in values.items() if k in known})
        except TypeError as error:
            raise StageError(
                f"a stage was made by another version of this package ({error}); run "
                "it again in another --workdir"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """As a manifest has them."""
        return {k: v for k, v in vars(self).items() if v is not None}


@dataclass(frozen=True, kw_only=True)
class RoleFacts(Facts):
    """How a role's model reads text."""

    tokenizer: str  # digest
    template: str  # digest
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class PrepareFacts(Facts):
    """What all stages read of the prepared data."""

    config: dict[str, Any]  # data and text, from which a stage run alone begins
    teacher: dict[str, Any]  # RoleFacts
    student: dict[str, Any]  # RoleFacts
    report: dict[str, Any]  # what the data held
    pieces: dict[str, str]  # digests of what stages read

    def of_role(self, role: Role) -> RoleFacts:
        """Those of a role."""
        return RoleFacts.of(self.teacher if role == "teacher" else self.student)


@dataclass(frozen=True, kw_only=True)
class ExportFacts(Facts):
    """What an export notes."""

    stage: str  # that trained the weights
    length: int  # tokens a row


@dataclass(frozen=True, kw_only=True)
class EvaluateFacts(Facts):
    """What an evaluation has come to."""

    summary: dict[str, Any]  # metrics.comparison.Comparison's, and more


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Facts):
    """What the result of a training stage depends on, beside its inputs."""

    model: dict[str, Any]  # config.to_dict
    role: config.Role
    length: int  # tokens a row
    objective: dict[str, Any] | None = None
    optim: dict[str, Any] | None = None
    batch: dict[str, Any] | None = None
    steps: int | None = None  # None: as many as `epochs` are
    epochs: float | None = None
    seed: int | None = None
    checkpoint: dict[str, Any] | None = None  # that the weights come from
    lora: dict[str, Any] | None = None  # of a stage that trains adapters
    best: dict[str, Any] | None = None  # how the result is chosen, if not the last
    passages: dict[str, Any] | None = None  # how long documents are read, if by several


@dataclass(frozen=True, kw_only=True)
class TrainFacts(Facts):
    """What later stages read of a training stage."""

    tokenizer: str  # digest
    template: str  # digest
    vocab_size: int
    source: dict[str, Any] | None = None  # the checkpoint that a stage of no steps is
    base: str | dict[str, Any] | None = None  # of adapters: a stage or a checkpoint
    begins_from: dict[str, Any] | None = None  # checkpoint, for the model card
    checkpoint: int | None = None  # step that is the result


@dataclass(frozen=True, kw_only=True)
class TrainResults(Facts):
    """What a training stage has come to."""

    metrics: dict[str, float]
    steps: int
    checkpoint: int  # step that is the result


@dataclass(frozen=True, kw_only=True)
class ScoreFacts(Facts):
    """What a scoring stage notes, and a distillation reads."""

    teacher: str  # name of the stage that scored
    teacher_facts: dict[str, Any] | None = None
    code: str | None = None  # digest
    output: str = ""  # folder of the chunks; "": that of the stage
    pairs: int | None = None
    quarantined: int | None = None
    mean: float = 0.0
    std: float = 1.0
    min: float | None = None
    max: float | None = None


def reopen(manifest: Manifest, folder: pathlib.Path) -> None:
    """Marks a stage as not done, so that it resumes when it is run again."""
    dataclasses.replace(manifest, done=False).save(folder)


@contextlib.contextmanager
def lock(workdir: pathlib.Path, name: str, *, wait: bool = False) -> Iterator[None]:
    """Holds the stage `name` of `workdir` against a second run.

    The operating system lets go of the lock when its process ends, however it ends.
    It also holds between machines on file systems that share locks (NFS, Lustre with
    `-o flock`); where there are none, a line says so and the run continues.

    Args:
      workdir: folder of all stages.
      name: folder of the stage.
      wait: wait for the other run to end.

    Raises:
      StageError: when another run holds it, unless `wait`.
    """
    path = workdir / _LOCKS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = f"{workdir / name} is worked on by {file.read() or 'another run'}"
            if not wait:
                raise StageError(
                    f"{holder}; wait for it to end, stop it, or choose another "
                    "--workdir"
                ) from None
            print(f"[{name}] {holder}: waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            print(
                f"[{name}] the file system of {workdir} has no locks: see to it that "
                "no second run works in this folder",
                flush=True,
            )
        file.truncate(0)
        file.write(
            f"process {os.getpid()} on {socket.gethostname()} since "
            f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}"
        )
        file.flush()
        yield


@dataclass(frozen=True)
class Decision:
    """What a stage would do, and why."""

    folder: pathlib.Path
    manifest: Manifest  # of the stage as it is to be run
    found: Manifest | None  # of what its folder holds
    damage: str | None  # in a finished stage

    @property
    def done(self) -> bool:
        """Whether there is nothing to do."""
        if self.found is None or self.found.key != self.manifest.key:
            return False
        return self.found.done and not self.damage


def decide(folder: pathlib.Path, manifest: Manifest) -> Decision:
    """What running a stage would do; changes nothing."""
    found = load_manifest(folder)
    done = found is not None and found.done and found.key == manifest.key
    damage = find_output_damage(folder, found) if found and done else None
    return Decision(folder, manifest, found, damage)


def load_manifest(folder: pathlib.Path) -> Manifest | None:
    """The manifest in `folder`, or None where there is none; of the first process.

    Raises:
      StageError: when the file is not a manifest, or not as it was written.
    """
    return processes.first(lambda: read_manifest(folder))


def read_manifest(folder: pathlib.Path) -> Manifest | None:
    """As `load_manifest`, by this process alone.

    Raises:
      StageError: where the file is damaged, or not of this package.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        fields = read_sealed(path)
        key = fields.pop("key")
        found = Manifest(**fields)
        check_types(found)
        if found.key != key:
            raise ValueError("its key does not fit its settings")
        return found
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise StageError(
            f"{path} is not a manifest of this package ({error}); delete the folder "
            f"{folder} to have the stage run again"
        ) from error


def check_types(record: Any) -> None:
    """Raises `ValueError` for a field of another type than its dataclass says."""
    for name, kind in get_type_hints(type(record)).items():
        if not _fits(getattr(record, name), kind):
            said = kind.__name__ if isinstance(kind, type) else kind
            raise ValueError(f"its field {name!r} is not of type {said}")


def _fits(value: Any, kind: Any) -> bool:
    inside = get_args(kind)
    if kind is Any:
        return True
    if isinstance(kind, types.UnionType):
        return any(_fits(value, one) for one in inside)
    if get_origin(kind) is Literal:
        return value in inside
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(one, inside[0]) for one in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(
            _fits(key, inside[0]) and _fits(one, inside[1])
            for key, one in value.items()
        )
    if kind in (int, float):
        known = (int,) if kind is int else (int, float)
        return isinstance(value, known) and not isinstance(value, bool)
    return isinstance(value, kind)


def require_stage(
    workdir: pathlib.Path,
    name: str,
    *,
    kinds: tuple[str, ...],
    by: str,
    planned: Mapping[str, Manifest] | None = None,
) -> Manifest:
    """The manifest of the finished stage `name`, which must be one of `kinds`.

    Args:
      workdir: folder of all stages.
      name: folder of the stage wanted.
      kinds: kinds of stage that can serve.
      by: name of the stage that asks, for the message.
      planned: stages as a dry run would leave them, in place of what is on disk.

    Raises:
      StageError: when it is missing, unfinished or of another kind.
    """
    found = (planned or {}).get(name) or load_manifest(workdir / name)
    wanted = " or ".join(kinds)
    if found is None:
        others = sorted(
            path.parent.name for path in workdir.glob(f"*/{FILE}") if path.is_file()
        )
        raise StageError(
            f"{by} needs a finished stage {name!r} ({wanted}), but {workdir} does not "
            f"contain one; it has {', '.join(others) or 'no stage'}. Run that stage "
            "first, or name another"
        )
    if found.kind not in kinds:
        raise StageError(
            f"{by} needs a {wanted} stage, but {workdir / name} is a {found.kind} "
            "stage; name another"
        )
    if not found.done:
        raise StageError(
            f"{by} needs the stage {name!r}, which has not finished; run it again: it "
            "resumes from its last checkpoint"
        )
    return found


def is_done(folder: pathlib.Path, manifest: Manifest, *, replace: bool = False) -> bool:
    """Whether a stage has already been run into `folder`, just as `manifest` says.

    Args:
      folder: of the stage.
      manifest: of the stage as it is to be run now.
      replace: move a folder of other settings aside, to NAME.KEY.

    Raises:
      StageError: when other settings or inputs made what the folder holds, unless
        `replace`.
    """
    found = load_manifest(folder)
    if found is None:
        return False
    if found.key == manifest.key:
        return found.done
    aside = folder.with_name(f"{folder.name}.{found.key}")
    if not replace:
        raise StageError(_other_settings(folder, found, manifest, aside))
    differing = brief(changes(found, manifest))
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    print(f"[{folder.name}] runs again ({differing}); the old one is {aside}")
    return False


def _other_settings(
    folder: pathlib.Path, found: Manifest, manifest: Manifest, aside: pathlib.Path
) -> str:
    """What differs, and the command that works."""
    differs = f"{folder} was made with other settings: "
    differs += brief(changes(found, manifest))
    if manifest.kind == PREPARE:
        return (
            f"{differs}. To use what was prepared, run the same command without the "
            "flags --config.data.FIELD and --config.text.FIELD; for other data name "
            "another --workdir"
        )
    beside = (
        ", or keep both with --config.name=NAME" if manifest.kind == "score" else ""
    )
    return (
        f"{differs}. To run the stage again: mv {folder} {aside}, then the same "
        f"command{beside}; or name another --workdir"
    )


_TELLING = (
    "kind",
    "data.path",
    "model.",
    "objective.",
    "text.",
    "data.",
    "steps",
    "epochs",
)


def brief(differing: list[str]) -> str:
    """The three of `changes` that tell most, and how many more there are."""

    def rank(change: str) -> tuple[int, int]:
        place = next(
            (i for i, one in enumerate(_TELLING) if change.startswith(one)),
            len(_TELLING),
        )
        return place, change.split(":")[0].count(".")

    first = [one[:200] for one in sorted(differing, key=rank)[:3]]
    more = len(differing) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def outputs(folder: pathlib.Path) -> dict[str, list[Any]]:
    """Digests of all that a stage has written, but its manifest, to be kept there."""
    found = file_digests(folder)
    found.pop(FILE, None)
    return found


def find_output_damage(folder: pathlib.Path, manifest: Manifest) -> str | None:
    """What of a finished stage is not as it was written, as far as its facts tell.

    Large files carry checks of their own, and are not read here.
    """
    files = manifest.facts.get("files", {})
    return find_damage(folder, files, read_up_to=_READ_UP_TO)


@contextlib.contextmanager
def claim(
    folder: pathlib.Path,
    manifest: Manifest,
    *,
    replace: bool,
    wait: bool = False,
) -> Iterator[bool]:
    """Holds a stage while it is run; yields False where there is nothing to run.

    The first process holds the lock and decides for all.

    Args:
      folder: of the stage.
      manifest: of the stage as it is to be run now.
      replace: move a folder of other settings aside; see `is_done`.
      wait: wait for another run that works on it, and see what it has left.

    Raises:
      StageError: when another run works on it, or other settings made what it holds.
    """
    with contextlib.ExitStack() as stack:

        def begin() -> bool:
            found = load_manifest(folder)
            if found is not None and found.done and found.key == manifest.key:
                if (damage := find_output_damage(folder, found)) is None:
                    return False
                print(f"[{folder.name}] is damaged, and made again: {damage}")
                reopen(found, folder)
            stack.enter_context(lock(folder.parent, folder.name, wait=wait))
            return not is_done(folder, manifest, replace=replace)

        yield processes.first(begin)


def complete(
    folder: pathlib.Path,
    manifest: Manifest,
    write: Callable[[], Manifest],
    *,
    replace: bool,
) -> Manifest:
    """Has the first process write a stage unless it is done; its finished manifest.

    Args:
      folder: of the stage.
      manifest: of the stage as it is to be run now.
      write: writes the stage and finishes it.
      replace: as of `claim`.

    Raises:
      StageError: as `claim`.
    """
    with claim(folder, manifest, replace=replace) as todo:
        if todo:
            return processes.first(write)
        found = load_manifest(folder)
        assert found is not None
        return found


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name, such as optim.learning_rate."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = isinstance(value, Mapping)
        found |= (
            flat_settings(value, f"{prefix}{name}.")
            if inner
            else {prefix + name: value}
        )
    return found


def changes(old: Manifest, new: Manifest) -> list[str]:
    """What differs between two manifests of one stage, as `field: old -> new`."""
    before = {"kind": old.kind, **flat_settings(old.settings), **old.inputs}
    # Through JSON, as the old ones went: tuples become lists.
    settings = json.loads(json.dumps(new.settings))
    after = {"kind": new.kind, **flat_settings(settings), **new.inputs}
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]
