"""`ranker.latency`: every runtime of a folder, and students that are not trained."""

import json

import pytest
from made_rankers import export

from ranker import latency
from ranker.models.huggingface import flat
from ranker.serving import onnx_graph


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latency") / "export"
    model = export(folder)
    params = dict(flat(model.scorer.params))
    onnx_graph.write_graph(folder / onnx_graph.FILE, model.scorer.model, params)
    return folder


def test_every_runtime_and_shape_is_timed(folder, tmp_path, capsys):
    path = tmp_path / "rows.json"
    call = [str(folder), "--candidates", "3", "--tokens", "20", "--repeats", "2"]
    call += ["--shapes", "1x32", "--json", str(path), "--budget-ms", "1000"]
    assert latency.main(call) == 0
    rows = json.loads(path.read_text())
    assert [(row["student"], row["runtime"]) for row in rows] == [
        ("this one", "onnxruntime"),
        ("this one", "openvino"),
        ("this one", "jax"),
        ("1 x 32", "onnxruntime"),
    ]
    for row in rows:
        assert row["requests"] == 2
        assert 0 < row["p50"] <= row["p95"] <= row["p99"]
        # What fits a second, by the time that three candidates take.
        assert row["fit"] == int(1.0 / (row["p95"] / 3))
    shown = capsys.readouterr().out
    assert "3 candidates of 20 tokens" in shown and "within 1000 ms" in shown
    assert "cuts" not in shown


def test_longer_pairs_than_the_folder_reads_are_noted(folder, capsys):
    call = [str(folder), "--candidates", "1", "--tokens", "96", "--seconds", "1e-9"]
    assert latency.main([*call, "--shapes", ""]) == 0
    shown = capsys.readouterr().out
    assert "cuts, pairs of 64 tokens" in shown
    # A row that takes too long ends after three requests, not after twenty.
    assert [line.split()[-2] for line in shown.splitlines()[2:5]] == ["3"] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "2by64"], "LAYERSxWIDTH"),
        (["--tokens", "97"], "over the 96 positions of the model"),
        (["--candidates", "0"], "candidates must be above 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(folder, arguments, message):
    with pytest.raises(SystemExit, match=message):
        latency.main([str(folder), *arguments])
