"""A stage trained several times with other settings, and one table of what came."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from ranker import config, processes, storage
from ranker.config.sweep import Trial
from ranker.manifests import Manifest, TrainResults
from ranker.reporting import tables
from ranker.training.progress import is_better
from ranker.training.train import train


def sweep(
    stages: Sequence[tuple[Trial, config.Train]], workdir: pathlib.Path, **options: Any
) -> None:
    """Trains each stage in WORKDIR/NAME-FIELD-VALUE, then prints and writes a table.

    A run that is done is not run again, so the same command resumes a sweep. One whose
    loss stops being finite has a row that says so, and the next begins.

    Args:
      stages: what is tried, and the stage with it.
      workdir: of all stages; what is prepared there is shared.
      options: of `train`.

    Writes WORKDIR/NAME-sweep.md and .json.
    """
    name = stages[0][1].name
    rows = []
    for number, (trial, stage) in enumerate(stages, 1):
        stage = dataclasses.replace(stage, name=f"{name}-{trial.suffix}")
        if processes.leads():
            print(f"[sweep] {number} of {len(stages)}: {stage.name}", flush=True)
        row: dict[str, Any] = {"values": dict(trial.values), "stage": stage.name}
        try:
            row |= _results(train(stage, workdir, **options), workdir / stage.name)
        except FloatingPointError as error:
            row["failed"] = str(error)
        rows.append(row)
    if processes.leads():
        grid = runs_grid(name, rows)
        with storage.writing(workdir / f"{name}-sweep.md", "w") as file:
            file.write(tables.markdown(grid))
        storage.write_json(workdir / f"{name}-sweep.json", {"runs": rows})
        tables.show([grid])


def _results(manifest: Manifest, folder: pathlib.Path) -> dict[str, Any]:
    """Steps, and metrics at the step that is the result where they were logged."""
    results = TrainResults.of(manifest.facts)
    checkpoint, metrics = results.checkpoint, dict(results.metrics)
    if processes.leads():
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            found = json.loads(line)
            if found["step"] == checkpoint:
                metrics |= {k: v for k, v in found.items() if k in metrics}
    return {
        "steps": results.steps,
        "checkpoint": checkpoint,
        "metrics": {
            k: v for k, v in metrics.items() if k == "loss" or k.startswith("dev_")
        },
    }


def best(rows: Sequence[dict[str, Any]]) -> str:
    """The stage with the best value on dev; "" where none was measured.

    What a stage chooses its checkpoint by is the last of its metrics.
    """
    measured = [name for row in rows for name in row.get("metrics", ())]
    metric = next((name for name in reversed(measured) if name.startswith("dev_")), "")
    stage, so_far = "", None
    for row in rows:
        value = row.get("metrics", {}).get(metric)
        if value is not None and is_better(metric, value, so_far):
            stage, so_far = row["stage"], value
    return stage


def runs_grid(name: str, rows: Sequence[dict[str, Any]]) -> tables.Grid:
    """The runs in their order; the best on dev stands out."""
    fields = list(rows[0]["values"])
    metrics = list(dict.fromkeys(k for row in rows for k in row.get("metrics", ())))
    strong = best(rows)
    lines = []
    for row in rows:
        values = [row["values"][field] for field in fields]
        found = row.get("metrics", {})
        numbers = [tables.number(found.get(metric)) for metric in metrics]
        end = "not finite" if "failed" in row else str(row["checkpoint"])
        mark = tables.MARK if row["stage"] == strong else ""
        lines.append([row["stage"] + mark, *values, *numbers, end])
    title = f"Sweep of {name}"
    if strong:
        title += f"; {tables.MARK}: best on dev"
    header = ["stage", *fields, *metrics, "step"]
    return tables.Grid(
        title, header, lines, left=1 + len(fields), strong=strong + tables.MARK
    )
