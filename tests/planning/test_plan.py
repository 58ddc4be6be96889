"""Plans of tiny stages for TPUs that are not here, by the real compiler."""

import importlib.util
import json
import os
import re
import types

import jax
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from published import PUBLISHED, write_header

from ranker import config
from ranker import plan as entry
from ranker.chips import CHIPS
from ranker.models.build import abstract
from ranker.models.huggingface import open_checkpoint
from ranker.planning import chips, estimate, job, search
from ranker.planning.known import KNOWN

compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU compiler, is not installed (pip install 'ranker[tpu]')",
)

CONFIG = """
from ranker import config

def get_config(variant=""):
    model = config.Decoder(num_layers=2, embed_dim=256, num_heads=2, num_kv_heads=2,
        head_dim=128, mlp_dim=512, dtype="bfloat16", remat="full")
    text = config.Text(teacher_length=128)
    if variant == "prompt":
        text = config.Text(teacher_length=512, teacher_template="qwen3_reranker")
    if variant == "score":
        return config.Score(text=text, rows=8, mesh=config.Mesh(fsdp=4))
    return config.Train(name="sft", model=model, text=text, objective=config.Rank(),
        mesh=config.Mesh(data=1, fsdp=4), loop=config.Loop(steps=100),
        optim=config.Optim(learning_rate=1e-3, warmup=1),
        batch=config.Batch(size=8, list_size=2))
"""


@pytest.fixture
def plan(tmp_path, monkeypatch, capsys):
    """Runs the entry in this process; returns what it prints or ends with."""
    (tmp_path / "stage.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):  # puts back what the entry changes
        monkeypatch.setenv(name, os.environ[name])

    def run(*arguments, variant="", fails=False, code=None):
        try:
            entry.main(["--config", f"stage.py{variant}", *arguments])
        except SystemExit as error:
            assert fails, error
            return capsys.readouterr().out if error.code == code else str(error)
        assert not fails
        return capsys.readouterr().out

    before = jax.config.jax_enable_compilation_cache
    yield run
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


@compiler
def test_a_training_stage_on_two_slices(plan, tmp_path):
    where = ("--topology", "v5e:2x2", "--num-slices", "2")
    where += ("--config.text.teacher_length=64",)  # splash takes longer to compile
    text = plan(*where, "--json", "plan.json")
    found = json.loads((tmp_path / "plan.json").read_text())
    assert "15.75 GiB that a program may use: fits" in text
    assert found["stage"] == "sft" and found["chips"] == 8
    assert found["tokens_per_step"] == 16 * 64
    # Parameters, two moments of them, over four chips, in float32.
    least = 3 * 4 * found["parameters"] / 4
    assert least < found["memory"]["arguments"] < 1.2 * least
    assert found["memory"]["temporaries"] > 0
    assert 0.5 < found["flops_ratio"] < 1
    moved = found["collectives"]
    assert moved["all-reduce"]["dcn_bytes"] > 0
    assert moved["all-gather"]["ici_bytes"] > 0
    # Parameters are whole in each slice: what crosses is token ids and the like.
    gathered = moved["all-gather"]
    assert gathered["dcn_bytes"] < 0.05 * gathered["ici_bytes"]
    assert not found["unknown_loops"]
    assert found["step_seconds"] == max(found["terms"].values())
    assert found["expected"]["step_seconds"] >= found["step_seconds"]
    assert found["memory"]["arguments"] * 0.9 < found["evaluation"]["total"]
    hours = 100 * found["step_seconds"] * 8 / 3600
    assert found["chip_hours"] == pytest.approx(hours)


@compiler
def test_a_scoring_stage(plan, tmp_path):
    arguments = ("--topology", "v5e:2x2", "--json", "plan.json")
    text = plan(*arguments, variant=":score", fails=True)
    assert "name the config that trains it: --teacher" in text
    plan(*arguments, "--teacher", "stage.py", "--pairs", "8000", variant=":score")
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["stage"] == "score" and found["steps"] == 1000
    # Weights, and what is looked up in the split embeddings; no score, no gradient.
    assert set(found["collectives"]) == {"all-gather", "all-to-all"}


@compiler
def test_scoring_with_a_prompt_that_is_computed_once_a_list(plan, tmp_path):
    """Its attention compiles too: rows of 1,024 tokens, texts behind prefixes."""
    arguments = ("--topology", "v5e:2x2", "--json", "plan.json", "--pairs", "8000")
    arguments += ("--teacher", "stage.py:prompt", "--config.text.teacher_length=512")
    prompt = ("--text-tokens=200", "--prompt-tokens=70", "--documents=8")
    text = plan(*arguments, *prompt, variant=":score")
    found = json.loads((tmp_path / "plan.json").read_text())
    # A row holds the prompt and 7 documents of 130 tokens.
    assert found["pair_tokens"] == 130 + 70 / 7 and found["pair_tokens_alone"] == 200
    assert "computed once a list: 1.43 times as many" in text
    tokens = 8 * 512
    assert found["steps"] == -(-8000 * 140 // tokens)
    pairs = tokens / 140 / found["step_seconds"]
    assert found["pairs_per_second"] == pytest.approx(pairs)


@compiler
def test_what_does_not_go(plan):
    text = plan("--topology", "v5e:2x2", "--prompt-tokens=9", fails=True)
    assert "--prompt-tokens 9 must be below --text-tokens (0)" in text
    for topology, words in {
        "v5e": "is not a valid chip and shape; for example",
        "v9:2x2": "unknown chip 'v9'; known are v4, v5e",
        "v5e:2x2x1": "has 3 dimensions, and a slice of v5e has 2",
        "v5e:3x3": "the TPU compiler does not know this slice",
        "v5e:2x4": "does not use the 8 devices here",
    }.items():
        text = plan("--topology", topology, fails=True)
        assert text.startswith("error: ") and words in text, text
    length = "--config.text.teacher_length=200"
    text = plan("--topology", "v5e:2x2", length, fails=True)
    assert "rows of 200 tokens" in text and "128 or 256" in text


@compiler
def test_too_small_a_chip(plan):
    where = ("--topology", "v5e:2x2", "--config.text.teacher_length=64")
    wide = ("--config.model.embed_dim=32768", "--config.model.mlp_dim=32768")
    text = plan(*where, *wide, fails=True, code=1)
    assert "of 15.75 GiB that a program may use: DOES NOT FIT" in text
    assert "Parameters and their moments alone do not fit 1 x v5e:2x2" in text
    assert "batch.size" not in text  # it would not help


def test_ways_out_are_those_that_are_left(tmp_path, monkeypatch):
    (tmp_path / "stage.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    chip, _ = chips.parse("v5e:2x2")
    slices = chips.Slices(chip, "v5e:2x2", 1, (None,) * 4)

    def ways(variant, *flags):
        stages = (config.Train, config.Score)
        settings = config.load(f"stage.py{variant}", list(flags), of=stages)
        return entry.ways_out(settings, slices, alone=False)

    full = "lower batch.size (8), or raise batch.accumulate (1), or take a larger slice"
    assert f"does not fit 1 x v5e:2x2: {full};" in ways("")
    assert "set model.remat to full (dots)" in ways("", "--config.model.remat=dots")
    flags = ("--config.mesh.data=2", "--config.mesh.fsdp=2")
    assert "raise mesh.fsdp x mesh.tensor (2) to 4" in ways("", *flags)
    assert "lower rows (8), or take a larger slice" in ways(":score")


@compiler
def test_search(plan, tmp_path):
    where = ("--topology", "v5e:2x2", "--config.text.teacher_length=64")
    text = plan(*where, "--search", "--max-programs=2", "--json", "plan.json")
    found = json.loads((tmp_path / "plan.json").read_text())
    rates = [one["tokens_per_second"] for one in found]
    assert len(found) == 2 and rates == sorted(rates, reverse=True)
    assert "stops after 2 programs" in text
    for one in found:
        assert one["flags"] in text
        assert one["mesh"]["fsdp"] == 4
    # What a search prints is what a run of those flags has.
    again = plan(*where, *found[0]["flags"].split(), "--json", "one.json")
    one = json.loads((tmp_path / "one.json").read_text())
    assert one["memory"] == found[0]["memory"] and "fits" in again


def test_the_message_of_a_program_that_is_too_large():
    new = "total memory required (1.00T) exceeds available HBM (15.75G)"
    old = "Used 17.50G of 15.75G hbm. Exceeded hbm capacity by 1.75G."
    gib = 2**30
    assert estimate.too_large(new, 0) == (1024 * gib, 15.75 * gib)
    assert estimate.too_large(old, 0) == (17.5 * gib, 15.75 * gib)


def test_without_the_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(config.ConfigError, match=r"pip install 'ranker\[tpu\]'"):
        entry.prepare_compiler("v5e:2x2")


def test_networks_that_are_known_are_those_of_the_published_configs(tmp_path):
    for name in KNOWN.keys() & PUBLISHED.keys():
        write_header(tmp_path / name, PUBLISHED[name])
        found = open_checkpoint(config.Pretrained(path=str(tmp_path / name)))
        assert KNOWN[name] == (found.model, found.vocab_size), name
    assert len(list(tmp_path.glob("*/*"))) == 2
    sizes = {"17m": 17, "32m": 32, "68m": 68, "150m": 150, "400m": 400, "1b": 1030}
    for size, millions in sizes.items():
        model, vocab_size = KNOWN[f"jhu-clsp/ettin-encoder-{size}"]
        _, shapes = nnx.split(abstract(model, vocab_size, "score"))
        count = sum(one.size for one in jax.tree.leaves(shapes))
        assert count == pytest.approx(millions * 1e6, rel=0.02), size


def test_every_chip_has_sensible_figures():
    for chip in CHIPS.values():
        least = 0.74 if chip.gpu else 0.9
        assert least < chip.usable / chip.share(chip.hbm) < 1.02, chip
        assert chip.dcn < chip.ici < chip.hbm_bandwidth < chip.flops / 100, chip


@pytest.mark.parametrize(
    ("topology", "links"),
    [
        ("v5e:1x1", 0),
        ("v5e:2x2", 2),  # one to each neighbour
        ("v5e:4x4", 2),  # the chips at an end of a side have one
        ("v5e:16x16", 4),  # both sides close to rings
        ("v5e:8x16", 3),
        ("v6e:2x4", 2),
        ("v4:2x2x2", 3),
        ("v4:4x4x4", 6),
        ("v5p:2x2x1", 2),
        ("v5p:4x4x8", 6),
        ("v5p:4x4x2", 3),  # not of whole cubes: no side closes
        ("tpu7x:4x4x4", 6),
    ],
)
def test_links_of_a_slice_with_and_without_wrap_around(topology, links):
    chip, shape = chips.parse(topology)
    one = chip.ici / (2 * chip.dimensions)
    assert chip.ici_of(shape) == pytest.approx(links * one)


@compiler
@pytest.mark.parametrize(
    ("topology", "devices"),
    [("v4:2x2x1", 4), ("v4:2x2x2", 8), ("v5p:2x2x1", 4), ("v6e:2x4", 8)],
)
def test_a_chip_is_one_device(topology, devices):
    slices = chips.find_slices(topology, 1)
    assert slices.chips == len(slices.devices) == devices


def _job(decoder, flops, steps=10):
    return types.SimpleNamespace(
        decoder=decoder, flops=flops, steps=steps, tokens=1000, kind="sft"
    )


def _found(flops, seconds):
    return types.SimpleNamespace(model_flops=flops, seconds=seconds)


def test_what_is_expected_is_the_published_share_of_the_peak_and_never_less():
    chip, _ = chips.parse("v5e:2x2")
    slices = chips.Slices(chip, "v5e:2x2", 1, (None,) * 4)
    second = 4 * chip.flops  # operations of a second at the peak
    slow = estimate.expected(_job(True, second), slices, _found(second, 1.1))
    assert slow is not None and "v5e-256" in slow["source"]
    assert slow["step_seconds"] == pytest.approx(1 / 0.57)
    assert slow["chip_hours"] == pytest.approx(10 * 4 / 0.57 / 3600)
    assert slow["tokens_per_second"] == pytest.approx(570)
    bound = estimate.expected(_job(True, second), slices, _found(second, 3.0))
    assert bound is not None and bound["step_seconds"] == 3.0
    assert bound["utilisation"] == pytest.approx(1 / 3)
    small = estimate.expected(_job(False, second), slices, _found(second, 1.0))
    assert small is not None and small["step_seconds"] == pytest.approx(1 / 0.39)
    l4 = chips.Slices(CHIPS["l4"], "l4:1", 1, (None,))
    assert estimate.expected(_job(True, 1.0), l4, _found(1.0, 1.0)) is None


def test_gpus_by_the_cpu_compiler(plan, tmp_path):
    where = ("--topology", "h100:4", "--config.text.teacher_length=64")
    text = plan(*where, "--json", "plan.json")
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["compiler"] == "CPU" and found["chips"] == 4
    assert "No GPU compiler is here" in text and "NVLink" in text
    memory = found["memory"]
    assert memory["limit"] == 60e9 and memory["fits"]
    least = 3 * 4 * found["parameters"] / 4
    assert least < memory["arguments"] < 1.2 * least
    # Roofline: the state goes in and out once, at 3.35 TB/s.
    assert found["terms"]["HBM"] == pytest.approx(2 * memory["arguments"] / 3.35e12)
    assert found["terms"]["ICI"] > 0 == found["terms"]["DCN"]
    # The state stays while dev is measured.
    assert found["evaluation"]["total"] > memory["arguments"] * 0.9
    assert "while dev is measured: fits" in text
    assert found["expected"]["source"].startswith("Megatron-Core")


def test_search_leaves_out_what_needs_more_than_what_did_not_fit():
    settings = config.Train(
        name="x",
        model=config.Encoder(num_layers=1, embed_dim=8, num_heads=2, mlp_dim=8),
        objective=config.Rank(),
        optim=config.Optim(learning_rate=1e-3, warmup=0),
        batch=config.Batch(size=8),
        loop=config.Loop(steps=1),
    )
    found = list(search.options(settings, None, 4))
    by = {one.flags[-2:]: one for one in found if one.settings.mesh.fsdp == 4}
    dots = by["--config.batch.size=8", "--config.model.remat=dots"]
    none = by["--config.batch.size=8", "--config.model.remat=none"]
    larger = by["--config.batch.size=16", "--config.model.remat=dots"]
    smaller = by["--config.batch.size=4", "--config.model.remat=none"]
    assert search.needs_more(none, dots) and search.needs_more(larger, dots)
    assert not search.needs_more(dots, none)
    assert not search.needs_more(smaller, dots)


def test_steps_of_epochs_are_those_of_the_records():
    settings = config.Train(
        name="x",
        model=config.Encoder(num_layers=1, embed_dim=8, num_heads=2, mlp_dim=8),
        objective=config.Rank(),
        optim=config.Optim(learning_rate=1e-3, warmup=0.1),
        batch=config.Batch(size=8, list_size=4),
        text=config.Text(student_length=64),
        loop=config.Loop(epochs=2),
    )

    def steps(records=None, tokens=0):
        texts = job.TextLengths(tokens)
        made = job.make_job(settings, None, jax.devices()[:1], records, texts)
        assert made.by_epochs
        return made.steps

    # Two passes over 1,000 lists of 4 texts; a step holds 32 rows of 64 tokens.
    assert steps(1000, 24) == -(-2 * 1000 * 4 * 24 // (32 * 64))
    # No text is longer than a row; without a mean all are as long.
    assert steps(1000) == steps(1000, 900) == 250
    assert steps() is None


@compiler
@pytest.mark.parametrize(("choice", "wide"), [("float32", True), ("bfloat16", False)])
def test_gradients_are_summed_over_chips_in_the_dtype_asked_for(plan, choice, wide):
    del plan  # it puts back what the compiler is told
    entry.prepare_compiler("v5e:2x2")
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    settings = config.Train(
        name="x",
        model=config.Encoder(
            num_layers=1,
            embed_dim=128,
            num_heads=2,
            mlp_dim=256,
            dtype="bfloat16",
            reduce_dtype=choice,
        ),
        text=config.Text(student_length=64),
        objective=config.Rank(),
        mesh=config.Mesh(data=4),
        optim=config.Optim(learning_rate=1e-3, warmup=1),
        batch=config.Batch(size=8, list_size=2),
        loop=config.Loop(steps=10),
    )
    made = job.make_job(settings, None, chips.find_slices("v5e:2x2", 1).devices)
    with jax.set_mesh(made.mesh):
        text = made.function.lower(*made.arguments).compile().as_text()
    lines = [line for line in text.splitlines() if " all-reduce(" in line]
    moved = [re.split(r" all-reduce\(", line)[0] for line in lines]
    shapes = [one for line in moved for one in re.findall(r"(bf16|f32)\[\d", line)]
    assert shapes.count("f32") > 3
    assert shapes.count("bf16") == 0 if wide else shapes.count("bf16") > 8
