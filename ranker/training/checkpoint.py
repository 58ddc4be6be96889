"""Checkpoints of a stage, by orbax; one is trusted only if every file of it is whole.

    WORKDIR/NAME/checkpoints/
      step_1000/       parameters apart from the rest of the state, as orbax writes them
      step_1000.json   digests of those files, and what else a run needs to resume

The second is written when the first is whole, and deleted before it: a folder without
it is what a killed run has left. Orbax has no digests that it checks: a flipped bit
would go unnoticed.
"""

import contextlib
import functools
import itertools
import pathlib
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from orbax.checkpoint import v1 as ocp

from ranker import manifests, processes, storage
from ranker.errors import StageError
from ranker.training.progress import is_better
from ranker.training.state import TrainState, abstract_like

FOLDER = "checkpoints"
_NAME = re.compile(r"step_(\d+)")
_PARTS = ("params", "train")
_ORBAX_FILES = {*_PARTS, "_CHECKPOINT_METADATA", "commit_success.txt"}


class Checkpoints:
    """The checkpoints of one stage's folder.

    Saving is asynchronous: the arrays are copied, and written and digested while
    training continues.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        keep: int | None = None,
        best_metric: str = "none",
        note: Callable[[str], None] = print,
    ):
        """Opens `folder`/checkpoints.

        Args:
          folder: of the stage.
          keep: how many of the newest stay when another is saved; None: to read only.
          best_metric: of dev; the checkpoint with the best value stays too.
          note: prints a line about the stage.

        Raises:
          StageError: when a folder lies where a checkpoint goes, and is none.
        """
        self.folder = folder
        self._root = (folder / FOLDER).resolve()
        self._keep, self._best_metric, self._note = keep, best_metric, note
        self._pending: Future | None = None
        self._numbers = itertools.count()  # of what the processes exchange
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._channel = processes.channel()
        if keep is not None:
            processes.first(self._clean)

    def _clean(self) -> None:
        """Deletes what killed runs have left half-written."""
        for path in self._root.glob("step_*"):
            name = path.name.split(".")[0]
            if path.suffix in (".json", ".damaged") or not path.is_dir():
                continue
            if self._record(name).is_file() and path.name == name:
                continue
            strange = {one.name for one in path.iterdir()} - _ORBAX_FILES
            if any(not one.startswith("orbax") for one in strange):
                raise StageError(
                    f"{path} is where a checkpoint goes, but is not one of this "
                    "package's; move it away"
                )
            shutil.rmtree(path)

    def _record(self, name: str) -> pathlib.Path:
        return self._root / f"{name}.json"

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints that were written to the end, rising."""
        found = [_NAME.fullmatch(path.stem) for path in self._root.glob("step_*.json")]
        return sorted(int(match[1]) for match in found if match)

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint that was written to the end, or None."""
        return max(self.steps, default=None)

    def best(self) -> tuple[int, float] | None:
        """Step and value of the checkpoint with the best `best_metric` so far."""
        found: tuple[int, float] | None = None
        for step in self.steps:
            try:
                metrics = storage.read_sealed(self._record(f"step_{step}"))["metrics"]
            except (OSError, ValueError):
                continue  # it is found damaged when it is wanted
            value = metrics.get(self._best_metric)
            # The first of equals, so that the choice does not depend on when one looks.
            if value is not None and is_better(
                self._best_metric, value, found[1] if found else None
            ):
                found = step, value
        return found

    def is_better(self, metrics: dict[str, float]) -> bool:
        """Whether a state with these metrics of dev is the best so far."""
        if self._best_metric not in metrics:
            return False
        self.wait()

        def decide() -> bool:
            best = self.best()
            value = metrics[self._best_metric]
            return is_better(self._best_metric, value, best[1] if best else None)

        return processes.first(decide)

    def save(
        self,
        state: TrainState,
        step: int,
        progress: dict[str, Any],
        metrics: dict[str, float],
    ) -> None:
        """Starts to save; waits for the save before.

        Args:
          state: after `step` steps.
          step: number of the checkpoint.
          progress: what the run knows beside its state, as JSON.
          metrics: of dev, of this very state; {} where it was not measured.

        Raises:
          StageError: when the save before could not be written.
        """
        self.wait()
        rest = {"step": state.step, "opt_state": state.opt_state, "key": state.key}
        try:
            response = ocp.save_checkpointables_async(
                str(self._root / f"step_{step}"),
                {"params": state.params, "train": rest},
                overwrite=True,
            )
        except Exception as error:
            raise self._cannot_save(step, error) from error
        record = {"step": step, "progress": progress, "metrics": metrics}
        self._pending = self._background.submit(
            self._finish, response, record, next(self._numbers)
        )

    def amend(
        self, step: int, progress: dict[str, Any], metrics: dict[str, float]
    ) -> None:
        """Gives a saved checkpoint what was measured after it was saved.

        Raises:
          StageError: when the save could not be written.
        """
        self.wait()

        def write() -> None:
            path = self._record(f"step_{step}")
            record = storage.read_sealed(path)
            storage.write_sealed(
                path, {**record, "progress": progress, "metrics": metrics}
            )
            self._delete_old()

        processes.first(write)

    def _finish(self, response: Any, record: dict[str, Any], number: int) -> None:
        """Waits until the files are whole, writes their digests, deletes old ones.

        Each process reads what it wrote itself.
        """
        step = record["step"]
        name = f"step_{step}"
        try:
            response.result()
            parts = processes.exchange(
                f"{self._channel}/{number}/{step}",
                lambda: storage.file_digests(self._root / name, _is_own),
            )
            if processes.leads():
                files = {path: one for part in parts for path, one in part.items()}
                storage.write_sealed(self._record(name), {**record, "files": files})
                self._delete_old()
        except Exception as error:
            raise self._cannot_save(step, error) from error

    def _cannot_save(self, step: int, error: Exception) -> StageError:
        before = [one for one in self.steps if one != step]
        where = f"from step {max(before)}" if before else "from the beginning"
        return StageError(
            f"the checkpoint at step {step} cannot be written to {self._root}: "
            f"{_root_cause(error)}. Make room, or the folder writable, and run the "
            f"same command again: it resumes {where}"
        )

    def _delete_old(self) -> None:
        assert self._keep is not None
        stay = set(self.steps[-self._keep :])
        if best := self.best():
            stay.add(best[0])
        for step in self.steps:
            if step not in stay:
                self._record(f"step_{step}").unlink()
                shutil.rmtree(self._root / f"step_{step}")

    def wait(self) -> None:
        """Returns when the last save is on disk, with its record, in all processes.

        Raises:
          StageError: saying what went wrong with it, in whichever process.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            processes.together(pending.result)

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that is whole, and the progress saved with it.

        Damaged ones are named and set aside.

        Args:
          state: its arrays say how the restored ones are laid out.
        """
        step = self.newest_whole(processes.first(lambda: self.steps), _PARTS)
        if step is None:
            return None
        rest = {"step": state.step, "opt_state": state.opt_state, "key": state.key}
        abstract = abstract_like({"params": state.params, "train": rest})
        loaded = self._load(step, abstract)
        restored = TrainState(
            params=loaded["params"], sound=state.sound, **loaded["train"]
        )
        record = processes.first(
            lambda: storage.read_sealed(self._record(f"step_{step}"))
        )
        return restored, record["progress"]

    def restore_params(self, abstract: Any) -> Any:
        """Parameters alone of the checkpoint that is the stage's result.

        Args:
          abstract: tree of `jax.ShapeDtypeStruct` with the shardings wanted.

        Raises:
          StageError: when it is missing or damaged. The stage then counts as not
            finished, so that it resumes from the checkpoint before when run again.
        """
        manifest = manifests.load_manifest(self.folder)
        facts = manifest and manifests.TrainFacts.of(manifest.facts)
        chosen = facts.checkpoint if facts else None
        step = processes.first(lambda: self.latest if chosen is None else chosen)
        if step is None or self.newest_whole([step], ("params",)) is None:
            if manifest and manifest.done:
                processes.first(lambda: self._reopen(manifest))
            raise StageError(
                f"{self.folder} has no checkpoint that is whole at "
                f"{'its end' if step is None else f'step {step}'}; run that stage "
                "again: it resumes from the last one before, to the same result"
            )
        return self._load(step, {"params": abstract})["params"]

    def _reopen(self, manifest: manifests.Manifest) -> None:
        with contextlib.suppress(OSError):  # as in somebody else's folder
            manifests.reopen(manifest, self.folder)

    def newest_whole(self, steps: list[int], parts: tuple[str, ...]) -> int | None:
        """The last of `steps` whose files of these parts are as they were written.

        The processes read a share of the files each.
        """
        for step in sorted(steps, reverse=True):
            damage = self._damage(step, parts)
            if damage is None:
                return step
            self._note(f"the checkpoint at step {step} is damaged: {damage}")
            processes.first(functools.partial(self._set_aside, step))
        return None

    def _damage(self, step: int, parts: tuple[str, ...]) -> str | None:
        record = self._record(f"step_{step}")
        try:
            files = processes.first(lambda: storage.read_sealed(record)["files"])
        except FileNotFoundError:
            return f"{record.name} is missing"
        except (OSError, ValueError) as error:
            return f"{record.name}: {error}"
        others = {part for part in _PARTS if part not in parts}
        wanted = {
            name: one for name, one in files.items() if name.split("/")[0] not in others
        }
        share = dealt(wanted, processes.count())[processes.index()]
        found = processes.together(
            lambda: storage.find_damage(
                self._root / f"step_{step}", {name: files[name] for name in share}
            )
        )
        return next((damage for damage in found if damage), None)

    def _set_aside(self, step: int) -> None:
        """Renames a damaged checkpoint, so that another can be saved in its place."""
        folder = self._root / f"step_{step}"
        aside = folder.with_name(f"{folder.name}.damaged")
        try:
            self._record(folder.name).unlink(missing_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            if folder.is_dir():
                folder.rename(aside)
                self._note(f"it is set aside as {aside}")
        except OSError as error:
            self._note(f"{folder} cannot be set aside: {error.strerror}")

    def _load(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        path = self._root / f"step_{step}"
        try:
            return ocp.load_checkpointables(str(path), abstract)
        except Exception as error:
            raise StageError(
                f"{path} cannot be restored: {_root_cause(error)}. The model or "
                "optimiser settings must be those that it was saved with"
            ) from error

    def close(self) -> None:
        """Waits for what is being saved, and closes."""
        try:
            self.wait()
        finally:
            self._background.shutdown()


def dealt(files: dict[str, list[Any]], count: int) -> list[list[str]]:
    """The files dealt to so many readers, about as many bytes to each.

    The largest first, each to who has least so far; alike on every process.
    """
    shares: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * count
    for name in sorted(sorted(files), key=lambda one: files[one][0], reverse=True):
        least = sizes.index(min(sizes))
        shares[least].append(name)
        sizes[least] += files[name][0]
    return shares


def _is_own(name: str) -> bool:
    """Whether this process wrote a file of a checkpoint, by its path in it.

    Orbax gives each process a folder `ocdbt.process_N`; the rest is the first one's.
    """
    found = re.search(r"(?:^|/)ocdbt\.process_(\d+)/", name)
    return (int(found[1]) if found else 0) == processes.index()


def _root_cause(error: BaseException) -> BaseException:
    """What went wrong: orbax hides the reason of every mismatch in a cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
