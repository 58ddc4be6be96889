"""Where a stage's metrics go beside metrics.jsonl: TensorBoard, W&B, MLflow."""

import importlib.util
import json
import os
import pathlib
import secrets
import time
from collections.abc import Callable
from typing import Any, Protocol

from ranker import manifests, storage
from ranker.errors import ConfigError

TRACKERS = "RANKER_TRACK"  # names of trackers, between commas
IDENTITIES = "trackers.json"  # in a stage's folder: its run in each tracker


class Sink(Protocol):
    """Receives the metrics that a stage writes."""

    name: str

    def write(self, values: dict[str, float], count: int) -> None:
        """Takes the metrics after `count` units."""
        ...

    def close(self) -> None:
        """Sends what is left."""
        ...


def open_sinks(
    folder: pathlib.Path, stage: str, *, resumed_at: int | None
) -> list[Sink]:
    """TensorBoard where tensorboardX is installed, and what RANKER_TRACK names.

    A stage that is resumed continues its run of each tracker.

    Args:
      folder: of the stage.
      stage: its name.
      resumed_at: units that its checkpoint holds; None: it begins.

    Raises:
      ConfigError: for an unknown tracker, or one that is not installed.
    """
    sinks: list[Sink] = []
    if importlib.util.find_spec("tensorboardX"):
        sinks.append(_TensorBoard(folder, stage, resumed_at))
    return sinks + [KINDS[name](folder, stage) for name in check_trackers()]


def check_trackers() -> list[str]:
    """The trackers that RANKER_TRACK names.

    Raises:
      ConfigError: for an unknown one, or one that is not installed.
    """
    given = os.environ.get(TRACKERS, "")
    names = [one.strip() for one in given.split(",") if one.strip()]
    for name in names:
        if name not in KINDS:
            raise ConfigError(
                f"{TRACKERS}={given!r} names {name!r}; there are {', '.join(KINDS)}"
            )
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"{TRACKERS} names {name}, which is not installed: pip install "
                f"'ranker[{name}]'"
            )
    return names


class _TensorBoard:
    name = "tensorboard"

    def __init__(self, folder: pathlib.Path, stage: str, resumed_at: int | None):
        from tensorboardX import SummaryWriter

        # What a killed run drew beyond the checkpoint is not shown.
        purge = None if resumed_at is None else resumed_at + 1
        self._stage = stage
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def write(self, values: dict[str, float], count: int) -> None:
        for name, value in values.items():
            self._board.add_scalar(f"{self._stage}/{name}", value, count)

    def close(self) -> None:
        self._board.close()


class _Wandb:
    """Steps that W&B has already are left out by it; they would be the same."""

    name = "wandb"

    def __init__(self, folder: pathlib.Path, stage: str):
        import wandb  # type: ignore[import-not-found]

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "ranker",
            group=folder.parent.name,
            name=f"{folder.parent.name}/{stage}",
            id=identity(folder, self.name, lambda: secrets.token_hex(8)),
            resume="allow",
            dir=str(folder),
            config=_settings(folder),
            reinit="create_new",
        )

    def write(self, values: dict[str, float], count: int) -> None:
        self._run.log(values, step=count)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """Steps that it has already are left out; they would be the same."""

    name = "mlflow"

    def __init__(self, folder: pathlib.Path, stage: str):
        import mlflow  # type: ignore[import-not-found]

        self._client = mlflow.MlflowClient()
        self._run = identity(folder, self.name, lambda: self._begin(folder, stage))
        self._client.update_run(self._run, status="RUNNING")
        known = self._client.get_run(self._run).data.metrics
        self._last = {
            name: max(
                one.step for one in self._client.get_metric_history(self._run, name)
            )
            for name in known
        }

    def _begin(self, folder: pathlib.Path, stage: str) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "ranker"
        found = self._client.get_experiment_by_name(name)
        number = found.experiment_id if found else self._client.create_experiment(name)
        run = self._client.create_run(number, run_name=f"{folder.parent.name}/{stage}")
        for field, value in manifests.flat_settings(_settings(folder)).items():
            self._client.log_param(run.info.run_id, field, str(value)[:500])
        return run.info.run_id

    def write(self, values: dict[str, float], count: int) -> None:
        from mlflow.entities import Metric  # type: ignore[import-not-found]

        now = int(time.time() * 1000)
        # MLflow refuses "@" in a name.
        named = {name.replace("@", "_at_"): value for name, value in values.items()}
        metrics = [
            Metric(name, value, now, count)
            for name, value in named.items()
            if count > self._last.get(name, -1)
        ]
        if metrics:
            self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run)


KINDS: dict[str, Callable[[pathlib.Path, str], Sink]] = {
    "wandb": _Wandb,
    "mlflow": _MLflow,
}


def identity(folder: pathlib.Path, tracker: str, make: Callable[[], str]) -> str:
    """The stage's run in a tracker; made once, and kept in its folder."""
    path = folder / IDENTITIES
    known = json.loads(path.read_text()) if path.is_file() else {}
    if tracker not in known:
        known[tracker] = make()
        storage.write_json(path, known)
    return known[tracker]


def _settings(folder: pathlib.Path) -> dict[str, Any]:
    found = manifests.read_manifest(folder)
    return dict(found.settings) if found else {}
