"""Runtimes: graphs of every encoder family, and scores of a pair alone."""

import dataclasses

import jax
import numpy as np
import pytest
from made_rankers import DECODER, ENCODERS, network, rows

from ranker.errors import ModelError
from ranker.models.huggingface import flat
from ranker.serving import onnx_graph, quantisation, runtimes

VOCABULARY = 50


def narrow(model):
    """The same parameters, computed in bfloat16."""
    settings = dataclasses.replace(model.model, dtype="bfloat16")
    other = network(settings, VOCABULARY)
    return dataclasses.replace(other, params=model.params)


@pytest.fixture(scope="module", params=ENCODERS)
def made(request, tmp_path_factory):
    model = network(ENCODERS[request.param], VOCABULARY)
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    onnx_graph.write_graph(path, model.model, dict(flat(model.params)))
    pairs = rows(12, VOCABULARY)
    return model, path, pairs, model(pairs)


def test_a_graph_scores_as_our_model(made):
    _, path, pairs, expected = made
    for kind in (runtimes.OnnxRuntime, runtimes.OpenVino):
        found = runtimes.score_pairs(kind(path, "float32", VOCABULARY), pairs)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=1e-5 * scale, rtol=0)


def test_dividing_large_channels_leaves_scores(made, tmp_path):
    import onnx

    model, path, pairs, expected = made
    smooth, names = quantisation.divided_graph(path, pairs, ("down",))
    onnx.save(smooth, str(tmp_path / "smooth.onnx"))
    opened = runtimes.OnnxRuntime(tmp_path / "smooth.onnx", "float32", VOCABULARY)
    scale = np.abs(expected).max()
    found = runtimes.score_pairs(opened, pairs)
    np.testing.assert_allclose(found, expected, atol=2e-5 * scale, rtol=0)
    weights = [node.input[1] for node in smooth.graph.node if node.name in names]
    alone = model.model.pooling == "cls"  # the last layer has one token of queries
    for layer in range(3):
        of_one = {"q", "o", "up", "gate"} if alone and layer == 2 else set()
        for name in ("q", "k", "v", "o", "up", "gate", "down"):
            reduced = f"body.layers.{name}.{layer}" in weights
            given = name != "gate" or model.model.gated
            assert reduced == (given and name not in of_one | {"down"}), name
    # A head scores one row a pair, but in late interaction every token.
    heads = [name for name in weights if name.startswith("head")]
    assert bool(heads) == (model.model.pooling == "late")


def test_graphs_of_onnx_are_valid(made):
    import onnx

    onnx.checker.check_model(str(made[1]), full_check=True)


def test_names_and_types_are_those_that_other_servers_ask_for(made):
    """What Vespa, OpenVINO Model Server and optimum feed and read by name."""
    import onnx

    model, path, *_ = made
    graph = onnx.load(str(path)).graph

    def described(values):
        return {
            one.name: (
                one.type.tensor_type.elem_type,
                [d.dim_param or d.dim_value for d in one.type.tensor_type.shape.dim],
            )
            for one in values
        }

    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] if model.model.num_types > 1 else []
    whole = (onnx.TensorProto.INT64, ["batch", "tokens"])
    assert described(graph.input) == dict.fromkeys(names, whole)
    one = (onnx.TensorProto.FLOAT, ["batch", 1])
    assert described(graph.output) == {"logits": one}


def test_a_score_is_a_function_of_its_pair(made):
    model, path, pairs, _ = made
    opened = [
        runtimes.OnnxRuntime(path, "float32", VOCABULARY),
        runtimes.OpenVino(path, "float32", VOCABULARY),
        runtimes.OpenVino(path, "bfloat16", VOCABULARY),
    ]
    if model.model.family == "bert":  # compiling takes seconds
        opened.append(runtimes.Jax(model, "float32"))
        opened.append(runtimes.Jax(narrow(model), "bfloat16"))
    for runtime in opened:
        together = runtimes.score_pairs(runtime, pairs)
        alone = [runtimes.score_pairs(runtime, [one])[0] for one in pairs]
        assert together.tolist() == [float(x) for x in alone], runtime.name
        backwards = runtimes.score_pairs(runtime, pairs[::-1])[::-1]
        assert together.tolist() == backwards.tolist(), runtime.name


def test_jax_does_not_trace_after_it_is_warm():
    model = network(ENCODERS["bert"], VOCABULARY)
    traces = 0

    def score(params, *arrays):
        nonlocal traces
        traces += 1
        return model.score(params, *arrays)

    counted = dataclasses.replace(model, score=jax.jit(score))
    runtime = runtimes.Jax(counted, "float32")
    runtime.warm(64)
    assert traces == 2  # rows of 32 and of 64 tokens
    found = runtimes.score_pairs(runtime, rows(20, VOCABULARY, longest=64))
    assert traces == 2
    assert np.isfinite(found).all()


@pytest.mark.parametrize(("precision", "near"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_rows_of_a_batch_on_a_device_do_not_matter(precision, near, monkeypatch):
    model = network(ENCODERS["bert"], VOCABULARY)
    one = runtimes.Jax(model, "float32")
    many = runtimes.Jax(model if precision == "float32" else narrow(model), precision)
    monkeypatch.setattr(many, "rows", lambda padded: 4)
    pairs = rows(6, VOCABULARY, longest=30)
    together = runtimes.score_pairs(many, pairs)
    alone = np.array([runtimes.score_pairs(many, [pair])[0] for pair in pairs])
    assert together.tolist() == alone.tolist()
    expected = runtimes.score_pairs(one, pairs)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(together, expected, atol=near * scale, rtol=0)


def test_what_a_graph_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ModelError, match="decoder"):
        onnx_graph.write_graph(tmp_path / "m.onnx", DECODER, {})


def test_files_that_are_not_there_are_named(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="onnxruntime cannot open it"):
        (tmp_path / "m.onnx").write_bytes(b"none")
        runtimes.OnnxRuntime(tmp_path / "m.onnx", "float32", VOCABULARY)
    monkeypatch.setattr(runtimes, "installed", lambda name: False)
    with pytest.raises(ModelError, match=r"ranker\[openvino\]"):
        runtimes.open_runtime(tmp_path, "openvino", "float32")
