"""Two lives of one stage are one run in each tracker, with every step once."""

import json
import pathlib
import sys

import mlflow

from ranker.training.reporter import Reporter

FOLDER = pathlib.Path(sys.argv[1]) / "runs" / "sft"


def live(first: int, last: int) -> None:
    reporter = Reporter(FOLDER, "sft", total=6, unit="step")
    reporter.resume(first, measured=first)
    for step in range(first + 1, last + 1):
        reporter.record(step, {"loss": 1.0 / step})
        reporter.record(step, {"dev_ndcg@5": step / 10})
    reporter.close()


live(0, 4)
before = json.loads((FOLDER / "trackers.json").read_text())
live(3, 6)  # killed after a checkpoint at step 3
assert json.loads((FOLDER / "trackers.json").read_text()) == before

client = mlflow.MlflowClient()
run = client.get_run(before["mlflow"])
assert run.info.status == "FINISHED" and run.info.run_name == "runs/sft"
for name, values in {
    "loss": {n: 1.0 / n for n in range(1, 7)},
    "dev_ndcg_at_5": {n: n / 10 for n in range(1, 7)},
}.items():
    found = client.get_metric_history(run.info.run_id, name)
    assert {one.step: one.value for one in found} == values, (name, found)
    assert len(found) == len(values), (name, found)

files = list((FOLDER / "wandb").glob(f"offline-run-*-{before['wandb']}/*.wandb"))
assert len(files) == 2, files  # a file a life; W&B joins them by the run's id
lines = (FOLDER / "metrics.jsonl").read_text().splitlines()
assert [json.loads(line)["step"] for line in lines] == [n // 2 for n in range(2, 14)]

print("trackers: one run a stage, resumed")
