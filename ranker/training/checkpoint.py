"""Checkpoints of a stage, by orbax: parameters apart from the rest of the state."""

import json
import pathlib
from typing import Any

from orbax.checkpoint import v1 as ocp

from ranker.manifest import StageError
from ranker.training.state import TrainState, abstract_like

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one stage's folder.

    Saving is asynchronous: the arrays are copied, and written while training goes on. A
    checkpoint appears under its step number only when it is whole.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int | None = None):
        """Opens `folder`/checkpoints; `keep` is the number of newest ones kept."""
        policy = ocp.training.preservation_policies
        make: Any = ocp.training.Checkpointer  # its protocols fit no pathlib.Path
        self._checkpointer = make(
            (folder / FOLDER).resolve(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(
                1
            ),
            preservation_policy=policy.LatestN(keep) if keep else policy.PreserveAll(),
            cleanup_tmp_directories=keep is not None,
        )
        self._pending: Any = None
        self.folder = folder

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        found = self._checkpointer.latest
        return None if found is None else found.step

    def save(self, state: TrainState, step: int, data: dict[str, Any]) -> None:
        """Starts to save both states; waits for the save before."""
        self.wait()
        rest = {"step": state.step, "opt_state": state.opt_state, "key": state.key}
        self._pending = self._checkpointer.save_checkpointables_async(
            step,
            {"params": state.params, "train": rest},
            custom_metadata={"data": json.dumps(data)},
            overwrite=True,
        )

    def wait(self) -> None:
        """Returns when the last save is on disk."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint, laid out like `state`, and the iterator's state."""
        step = self.latest
        assert step is not None
        rest = {"step": state.step, "opt_state": state.opt_state, "key": state.key}
        abstract = abstract_like({"params": state.params, "train": rest})
        loaded = self._load(step, abstract)
        metadata = self._checkpointer.checkpointables_metadata(step).custom_metadata
        restored = TrainState(params=loaded["params"], **loaded["train"])
        assert isinstance(metadata, dict)
        return restored, json.loads(str(metadata["data"]))

    def restore_params(self, abstract: Any) -> Any:
        """Parameters alone of the newest checkpoint.

        Args:
          abstract: tree of `jax.ShapeDtypeStruct` with the shardings wanted.
        """
        step = self.latest
        if step is None:
            raise StageError(f"{self.folder} has no checkpoint; run that stage again")
        return self._load(step, {"params": abstract})["params"]

    def _load(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._checkpointer.load_checkpointables(step, abstract)
        except (
            Exception
        ) as error:  # orbax hides the reason of every mismatch in a cause
            reason: BaseException = error
            while reason.__cause__ is not None:
                reason = reason.__cause__
            raise StageError(
                f"{self.folder / FOLDER / str(step)} cannot be restored: {reason}. The "
                "model or optimiser settings must be those that it was saved with"
            ) from error

    def close(self) -> None:
        """Waits for what is being saved, and closes."""
        self.wait()
        self._checkpointer.close()
