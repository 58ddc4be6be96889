"""What a stage's folder says of itself: the settings and inputs that made it.

A stage's *key* is a digest of its settings and of the keys of its inputs. Equal keys
mean equal results, so a finished stage with the right key is not run again, and one
with another key is never mistaken for it.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from dataclasses import dataclass, field
from typing import Any

import ranker

FILE = "manifest.json"


class StageError(RuntimeError):
    """A stage cannot begin from what its workdir holds; says what it wants."""


def digest(value: Any) -> str:
    """Short digest of anything JSON can write."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One stage's account of itself."""

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
        write_json(folder / FILE, {"key": self.key, **dataclasses.asdict(self)})

    def finish(self, folder: pathlib.Path, **facts: Any) -> "Manifest":
        """Marks the stage as done, with what it found out, and saves it."""
        done = dataclasses.replace(self, facts={**self.facts, **facts}, done=True)
        done.save(folder)
        return done


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file that is never seen half-written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    temporary.replace(path)


def load(folder: pathlib.Path) -> Manifest | None:
    """The manifest in `folder`, or None where there is none.

    Raises:
      StageError: when the file is not a manifest.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text())
        fields.pop("key")
        return Manifest(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(
            f"{path} is not a manifest of this package ({error}); delete the folder "
            f"{folder} to have the stage run again"
        ) from error


def require(workdir: pathlib.Path, name: str, *, kinds: tuple[str, ...], by: str):
    """The manifest of the finished stage `name`, which must be one of `kinds`.

    Args:
      workdir: folder of all stages.
      name: folder of the stage wanted.
      kinds: kinds of stage that can serve.
      by: name of the stage that asks, for the message.

    Raises:
      StageError: when it is missing, unfinished or of another kind.
    """
    found = load(workdir / name)
    wanted = " or ".join(kinds)
    if found is None:
        others = sorted(
            path.parent.name for path in workdir.glob(f"*/{FILE}") if path.is_file()
        )
        raise StageError(
            f"{by} begins from the stage {name!r} ({wanted}), and {workdir} has no "
            f"such folder; it has {', '.join(others) or 'no finished stage'}. Run that "
            "stage first, or name another"
        )
    if found.kind not in kinds:
        raise StageError(
            f"{by} begins from a {wanted} stage, and {workdir / name} is a "
            f"{found.kind} stage; name another"
        )
    if not found.done:
        raise StageError(
            f"{by} begins from the stage {name!r}, which has not finished; run it "
            "again to let it go on from its last checkpoint"
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
    found = load(folder)
    if found is None:
        return False
    if found.key == manifest.key:
        return found.done
    differing = ", ".join(changes(found, manifest))
    aside = folder.with_name(f"{folder.name}.{found.key}")
    if not replace:
        raise StageError(
            f"{folder} was made with other settings: {differing}; choose another "
            "--workdir, or rename that folder to run the stage again"
        )
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    print(f"[{folder.name}] runs again ({differing}); the old one is {aside}")
    return False


def changes(old: Manifest, new: Manifest) -> list[str]:
    """What differs between two manifests of one stage, as `field: old -> new`."""

    def flatten(value: Any, name: str) -> dict[str, Any]:
        if isinstance(value, dict):
            items = [flatten(v, f"{name}.{k}" if name else k) for k, v in value.items()]
            return {k: v for item in items for k, v in item.items()}
        return {name: value}

    before = {"kind": old.kind, **flatten(old.settings, ""), **old.inputs}
    # Through JSON, as the old ones went: tuples become lists.
    settings = json.loads(json.dumps(new.settings))
    after = {"kind": new.kind, **flatten(settings, ""), **new.inputs}
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]
