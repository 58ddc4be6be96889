"""The gate of fewer bits, on made losses, and candidates of a small encoder."""

import dataclasses
import functools
import math

import numpy as np
import onnx
import pytest
from made_rankers import export, rows
from onnx import numpy_helper

from ranker import config
from ranker.models.huggingface import flat
from ranker.serving import (
    contract,
    onnx_graph,
    precision,
    quantisation,
    runtimes,
    starting,
)
from ranker.serving.precision import Graded, Reduced

MARGIN = 0.005


def few_lose_much(draw, n):
    """One query in twenty loses 0.1: a mean loss of the margin, very skewed."""
    return np.where(draw.random(n) < 0.05, 0.1, 0.0)


def few_change(draw, n):
    return np.where(draw.random(n) < 0.05, draw.normal(0.1, 0.1, n), 0.0)


def many_change_a_little(draw, n):
    changed = draw.random(n) < 0.2
    return np.where(changed, draw.normal(MARGIN / 0.2, 0.1, n), 0.0)


def heavy_tails(draw, n):
    return draw.laplace(MARGIN, 0.05, n)


@pytest.mark.parametrize(
    "losses", [few_lose_much, few_change, many_change_a_little, heavy_tails]
)
def test_a_loss_of_the_margin_is_seldom_accepted(losses, monkeypatch):
    monkeypatch.setattr(precision, "_SAMPLES", 400)
    draw = np.random.default_rng(0)
    accepted = sum(
        precision.upper_bound(losses(draw, 100), seed=i) < MARGIN for i in range(120)
    )
    # 5 % of 120 are 6; 12 or more have a chance of 2 % at that rate.
    assert accepted < 12


def test_several_files_are_as_seldom_accepted_as_one(monkeypatch):
    monkeypatch.setattr(precision, "_SAMPLES", 400)
    draw, files, sets = np.random.default_rng(4), 5, 120
    wrong = apart = 0
    for seed in range(sets):
        losses = [few_change(draw, 100) for _ in range(files)]
        verdicts = [precision.upper_bound(one, seed=seed) < MARGIN for one in losses]
        tried = list(precision.until_refused(verdicts, bool))
        assert tried == verdicts[: len(tried)] and all(tried[:-1])
        wrong, apart = wrong + any(tried), apart + any(verdicts)
    # As above; tried apart from each other, five files are five chances.
    assert wrong < 12 < apart


def test_the_bound_of_even_losses_is_that_of_t():
    losses = np.random.default_rng(1).normal(0.0, 0.02, 400)
    size = np.sqrt(np.mean(losses**2))
    added = np.append(losses, [size] * 3)
    expected = added.mean() + 1.6487 * added.std(ddof=1) / 403**0.5  # t, 402 degrees
    assert precision.upper_bound(losses) == pytest.approx(expected, abs=1e-4)


def test_what_did_not_change_is_bounded_by_the_number_of_queries():
    assert precision.upper_bound(np.zeros(100)) == pytest.approx(0.003)
    same = np.full(100, 0.5)
    assert precision.loss_verdict(same, same, MARGIN).accepted
    few = precision.loss_verdict(same[:20], same[:20], MARGIN)
    assert not few.accepted and "20 queries" in few.reason and "61" in few.reason


def _centred(x):
    return x - x.mean()


def test_reasons_of_a_refusal():
    draw = np.random.default_rng(2)
    reference = draw.random(200)
    worse = precision.loss_verdict(reference, reference - 0.02, MARGIN)
    assert not worse.accepted and worse.loss == pytest.approx(0.02)
    assert worse.reason.startswith("it loses 0.0200")
    noisy = precision.loss_verdict(
        reference, reference + _centred(draw.normal(0, 0.2, 200)), MARGIN
    )
    assert not noisy.accepted and math.isfinite(noisy.upper)
    assert "cannot be ruled out" in noisy.reason
    needed = int(noisy.reason.split("about ")[1].split()[0])
    # The width shrinks with the root of the number: 0.034 to 0.005 takes 45 times.
    assert needed == pytest.approx(200 * (noisy.upper / MARGIN) ** 2, abs=1)
    assert noisy.reason.endswith("there are 200")


def broken(source, target, rows, *, name="body.layers.down.1", by=4):
    """A quantisation with one layer's scale four times too large."""
    model = onnx.load(str(source))
    for weight in model.graph.initializer:
        if weight.name == name:
            value = numpy_helper.to_array(weight) * np.float32(by)
            weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    onnx.save(model, str(target))


turned = functools.partial(broken, name="head.dense", by=-1)  # the last comes first


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision") / "export"
    model = export(folder)
    params = dict(flat(model.scorer.params))
    onnx_graph.write_graph(folder / onnx_graph.FILE, model.scorer.model, params)
    lists = []
    for i in range(70):
        segments = rows(6, model.scorer.vocab_size, seed=i, longest=20)
        scores = model.scorer(segments)  # the model is right by definition
        lists.append(Graded(segments, (scores >= np.sort(scores)[-2]).astype(float)))
    return folder, model, lists


def test_the_fastest_that_is_not_inferior_is_kept(exported, monkeypatch):
    folder, model, lists = exported
    monkeypatch.setattr(precision, "speed_of", lambda *_: 1.0)
    lines = []
    tried = [
        Reduced("bfloat16", "onnxruntime", quantisation.to_bfloat16),
        Reduced("int8", "onnxruntime", broken),
    ]
    settings = config.Onnx(precision="int8", margin=0.02)
    found = precision.accept(
        folder, model.contract, settings, lists, [], tried=tried, report=lines.append
    )
    good, bad = found.precisions["bfloat16"], found.precisions["int8"]
    assert good["accepted"] and good["queries"] == 70, lines
    assert good["upper"] < 0.02 and good["kendall_tau"] > 0.95
    assert not bad["accepted"] and bad["loss"] > 0.02, lines
    assert "refused: it loses" in lines[1]
    # A file that nobody accepted is not left beside the others.
    assert (folder / runtimes.FILES["bfloat16"]).is_file()
    assert not (folder / runtimes.FILES["int8"]).exists()
    size = (folder / runtimes.FILES["bfloat16"]).stat().st_size
    assert size < 0.8 * (folder / onnx_graph.FILE).stat().st_size
    found.save(folder)
    again = contract.load_contract(folder)
    assert again.precisions == found.precisions
    good["speedup"] = 1.5  # as where the CPU has units for it
    again = dataclasses.replace(again, precisions={"bfloat16": good})
    assert starting.choose_runtime(folder, again, "auto", "auto") == (
        "onnxruntime",
        "bfloat16",
    )
    good["speedup"] = 0.9  # as where it has none
    slower = dataclasses.replace(again, precisions={"bfloat16": good})
    assert starting.choose_runtime(folder, slower, "auto", "auto")[1] == "float32"
    assert starting.choose_runtime(folder, slower, "auto", "bfloat16")[1] == "bfloat16"


def test_what_train_changes_least_is_tried_first(exported, monkeypatch):
    folder, model, lists = exported
    segments = [segment for one in lists[:6] for segment in one.segments]
    tried = [
        Reduced("int8_dynamic", "onnxruntime", quantisation.to_dynamic_int8),
        Reduced("int8", "onnxruntime", turned),
        Reduced("int8_mixed", "onnxruntime", quantisation.to_mixed_int8),
        Reduced("bfloat16", "onnxruntime", quantisation.to_bfloat16),
    ]

    def speed(runtime, rows):  # as on a CPU without bfloat16
        return 0.5 if runtime.precision == "bfloat16" else 1.5

    monkeypatch.setattr(precision, "speed_of", speed)
    lines = []
    settings = config.Onnx(precision="int8", margin=0.2)
    found = precision.accept(
        folder,
        model.contract,
        settings,
        lists,
        segments,
        tried=tried,
        report=lines.append,
    ).precisions
    names = [line.removeprefix("[export] ").split()[0] for line in lines]
    assert set(names[:2]) == {"int8_mixed", "int8_dynamic"}, lines
    assert names[2:] == ["int8", "bfloat16"], lines
    assert [name for name in found if found[name]["accepted"]] == names[:2], lines
    noise = [found[name]["noise"] for name in names[:3]]
    assert 0 < noise[0] < noise[1] < noise[2]
    assert lines[3].endswith("not tried, since int8 by onnxruntime was refused")
    for name in names:
        assert (folder / runtimes.FILES[name]).exists() == (name in names[:2])
        (folder / runtimes.FILES[name]).unlink(missing_ok=True)


def test_large_channels_do_not_take_the_steps_of_others(exported, tmp_path):
    folder, model, lists = exported
    segments = [segment for one in lists[:6] for segment in one.segments]
    loud, path = onnx.load(str(folder / onnx_graph.FILE)), tmp_path / "loud.onnx"
    for weight in loud.graph.initializer:  # a large value meets a small weight
        value = numpy_helper.to_array(weight).copy()
        if weight.name.startswith("body.layers.v."):
            value[..., 3] *= 40
        elif weight.name in ("body.layers.o.0", "body.layers.o.1", "body.layers.o.2"):
            value[3] /= 40
        weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    onnx.save(loud, str(path))
    vocabulary = model.scorer.vocab_size

    def scores(path, precision="int8_dynamic"):
        runtime = runtimes.OnnxRuntime(path, precision, vocabulary)
        return runtimes.score_pairs(runtime, segments)

    expected, noise = scores(path, "float32"), []
    np.testing.assert_allclose(expected, model.scorer(segments), atol=1e-4)
    for rows_of_train in ((), segments):
        quantisation.to_dynamic_int8(path, tmp_path / "few.onnx", rows_of_train)
        noise.append(precision.score_noise(expected, scores(tmp_path / "few.onnx")))
    assert noise[1] < 0.7 * noise[0], noise


def test_a_server_refuses_what_was_not_accepted(exported):
    folder, model, _ = exported
    path = folder / runtimes.FILES["int8_dynamic"]
    quantisation.to_dynamic_int8(folder / onnx_graph.FILE, path)
    with pytest.raises(precision.ModelError, match="has not accepted"):
        starting.choose_runtime(folder, model.contract, "auto", "int8_dynamic")
    record = {"accepted": True, "runtime": "onnxruntime", "digest": "0" * 16}
    edited = dataclasses.replace(model.contract, precisions={"int8_dynamic": record})
    with pytest.raises(precision.ModelError, match="not the file that was accepted"):
        starting.choose_runtime(folder, edited, "auto", "int8_dynamic")


@pytest.mark.parametrize("record", [3, {"runtime": "os"}, {"runtime": "jax"}])
def test_records_that_cannot_be_read_are_named(exported, record):
    folder, model, _ = exported
    key = "int4" if record == {"runtime": "jax"} else "int8"
    edited = dataclasses.replace(model.contract, precisions={key: record})
    with pytest.raises(precision.contract.ContractError, match=f"precisions: '{key}'"):
        starting.choose_runtime(folder, edited, "auto", "auto")


def test_bfloat16_of_a_device_is_accepted_and_served_there(exported, monkeypatch):
    folder, model, lists = exported
    assert precision.ON_DEVICE not in precision.reduced_files("bfloat16")
    monkeypatch.setattr(runtimes, "device", lambda: "TPU v6")  # computed on a CPU here
    assert precision.reduced_files("bfloat16") == [precision.ON_DEVICE]
    settings = config.Onnx(precision="bfloat16", margin=0.1)
    lines = []
    found = precision.accept(
        folder, model.contract, settings, lists, [], report=lines.append
    )
    record = found.precisions["bfloat16"]
    assert record["accepted"] and record["kendall_tau"] < 1, lines
    assert (record["runtime"], record["device"]) == ("jax", "TPU v6")

    def chosen(name="auto", wanted="auto", **changed):
        changed = {"speedup": 1.5, **changed}
        edited = dataclasses.replace(
            found, precisions={"bfloat16": {**record, **changed}}
        )
        return starting.choose_runtime(folder, edited, name, wanted)

    assert chosen() == ("jax", "bfloat16")
    assert chosen(speedup=0.9) == chosen(device="H100") == ("jax", "float32")
    assert chosen("onnxruntime") == ("onnxruntime", "float32")
    with pytest.raises(precision.ModelError, match="safetensors is not the file"):
        chosen(digest="0" * 16)
    monkeypatch.undo()
    assert chosen() == ("onnxruntime", "float32")
    before = contract.load_contract(folder)
    found.save(folder)
    limits = starting.Limits()
    served, batcher = starting.start(
        folder, runtime="jax", precision="bfloat16", limits=limits
    )
    batcher.stop()
    assert served.runtime.precision == "bfloat16"
    before.save(folder)


@pytest.mark.parametrize("name", ["int8", "int8_mixed", "int8_dynamic"])
def test_int8_is_near_and_depends_on_the_pair_alone(exported, name):
    folder, model, lists = exported
    path = folder / runtimes.FILES[name]
    segments = [segment for one in lists[:6] for segment in one.segments]
    makers = {one.precision: one.make for one in precision.CANDIDATES}
    makers[name](folder / onnx_graph.FILE, path, segments)
    expected, vocabulary = model.scorer(segments), model.scorer.vocab_size
    opened: list[runtimes.Runtime] = [runtimes.OnnxRuntime(path, name, vocabulary)]
    if name == "int8":
        opened.append(runtimes.OpenVino(path, name, vocabulary))
    for runtime in opened:
        found = runtimes.score_pairs(runtime, segments)
        assert np.corrcoef(found, expected)[0, 1] > 0.9
        alone = [float(runtimes.score_pairs(runtime, [one])[0]) for one in segments]
        assert found.tolist() == alone, runtime.name
    path.unlink()


def test_golden_pairs_stop_a_folder_that_scores_otherwise(exported):
    folder, model, _ = exported
    pairs = [(one.query, (one.title, one.text)) for one in model.contract.golden]
    segments = model.encoder.pairs(pairs)
    runtime = runtimes.OnnxRuntime(
        folder / onnx_graph.FILE, "float32", model.scorer.vocab_size
    )
    starting.check_golden(model.contract, runtime, segments)
    path = folder / "broken.onnx"
    broken(folder / onnx_graph.FILE, path, [])
    wrong = runtimes.OnnxRuntime(path, "float32", model.scorer.vocab_size)
    with pytest.raises(precision.contract.ContractError, match="golden pairs score"):
        starting.check_golden(model.contract, wrong, segments)
    path.unlink()
