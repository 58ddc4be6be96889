import dataclasses
import pathlib
import subprocess
import sys
import typing

import pytest

from ranker import cli, config
from ranker.run import main

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"


def load(name, *overrides, of=None):
    classes = (config.Pipeline, config.Train, config.Score, config.Evaluate)
    return config.load(
        str(CONFIGS / name), overrides, of=of or (*classes, config.Export)
    )


def test_overrides_are_typed():
    settings = load(
        "sft.py",
        "--config.optim.learning_rate=3e-5",
        "--config.objective.loss=hinge",
        "--config.data.on_error=skip",
    )
    assert settings.optim.learning_rate == 3e-5
    assert settings.objective == config.Rank(loss=("hinge",))
    assert settings.data.on_error == "skip"


def test_override_of_a_tuple():
    settings = load("evaluate.py", "--config.measures", "NDCG@5", "MAP")
    assert settings.measures == ("NDCG@5", "MAP")


def test_a_wrong_field_names_the_nearest(capsys):
    with pytest.raises(SystemExit):
        load("sft.py", "--config.optim.learning_rat=3e-5")
    assert "learning-rate" in capsys.readouterr().err.replace("_", "-")


def test_a_wrong_type_is_refused(capsys):
    with pytest.raises(SystemExit):
        load("sft.py", "--config.optim.learning_rate=fast")
    assert "fast" in capsys.readouterr().err


def test_an_override_is_validated_again(capsys):
    with pytest.raises(SystemExit):
        load("sft.py", "--config.model.num_kv_heads=3")
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "num_heads 4 is not divisible by model.num_kv_heads 3" in shown


def test_help_shows_fields_defaults_and_units(capsys):
    with pytest.raises(SystemExit) as exit_:
        load("sft.py", "--help")
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    for text in ("learning-rate", "0.0005", "steps", "tokens a row", "softmax"):
        assert text in shown.replace("_", "-"), text


def test_a_missing_file_names_near_ones():
    with pytest.raises(config.ConfigError, match=r"no such file.*sft\.py"):
        load("sfft.py")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("beir.py:somke", r"beir\.py has no variant 'somke'; its variants are smoke"),
        ("distill_bert.py:six_layers", "its variants are six, smoke"),
    ],
)
def test_a_variant_that_does_not_exist_is_refused(asked, message):
    with pytest.raises(config.ConfigError, match=message):
        load(asked)


def test_a_config_of_another_entry_is_refused():
    with pytest.raises(config.ConfigError, match="Train config.*takes Score"):
        load("sft.py", of=config.Score)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("cpt.py", "cpt"),
        ("sft.py", "sft"),
        ("score.py", "scores"),
        ("distill.py", "distill"),
        ("evaluate.py", "evaluate"),
        ("export.py", "export"),
    ],
)
def test_stage_configs_are_the_quickstarts(file, name):
    assert load(file) == load("quickstart.py").stages()[name]


def _trained(settings):
    stages = [settings]
    if isinstance(settings, config.Pipeline):
        stages = settings.stages().values()
    return [one for one in stages if isinstance(one, config.Train)]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda p: p.name)
def test_every_config_has_a_smoke_variant_and_a_command(path):
    full, smoke = load(path.name), load(f"{path.name}:smoke")
    assert type(full) is type(smoke) and full != smoke
    for before, after in zip(_trained(full), _trained(smoke), strict=True):
        if before.loop.epochs:
            assert after.loop.epochs <= before.loop.epochs, before.name
        else:
            assert after.loop.steps <= min(before.loop.steps, 20), before.name
    text = path.read_text()
    assert f"--config configs/{path.name}" in text
    assert "ranker" in text and "from ranker import config" in text


@pytest.mark.parametrize(
    "name, flags",
    [
        ("beir", ["data.path"]),
        ("evidence", ["data.path"]),
        ("given_scores", ["data.path", "given_scores"]),
        ("qwen3_reranker_to_bert", ["data.path"]),
    ],
)
def test_a_path_that_must_be_given_is_asked_for_by_its_flag(name, flags, monkeypatch):
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    path = str(CONFIGS / f"{name}.py")
    asked = " ".join(f"--config.{flag}=..." for flag in flags)
    with pytest.raises(SystemExit) as stopped:
        main(["--config", path, "--workdir", "nowhere", "--dry-run"])
    told = str(stopped.value.code)
    assert f"{path} has no default for a path that it needs; add {asked} (" in told
    given = [f"--config.{flag}=here" for flag in flags]
    config.check_given(config.load(path, given, of=config.Pipeline), path)


def test_any_stage_of_a_pipeline_runs_alone():
    pipeline = str(CONFIGS / "beir.py")
    stages = load("beir.py").stages()
    flags = ["--config.optim.learning_rate=0.5"]
    found = config.load(pipeline, flags, of=config.Train, stage="student_labels")
    assert found.optim.learning_rate == 0.5
    same = config.replace(found, optim=stages["student_labels"].optim)
    assert same == stages["student_labels"]
    # What there is one of needs no name.
    assert config.load(pipeline, [], of=config.Score) == stages["scores"]
    assert config.load(pipeline, [], of=config.Export) == stages["export"]


@pytest.mark.parametrize(
    ("file", "stage", "message"),
    [
        ("beir.py", "", r"several stages; name one .*--stage cpt or sft or "),
        ("beir.py", "stf", r"has no stage 'stf'; name one .*--stage cpt or sft or "),
        ("beir.py", "scores", "is a Score stage, but this command takes Train"),
        ("sft.py", "sft", "makes a Train config; leave --stage out"),
    ],
)
def test_a_stage_that_cannot_be_chosen(file, stage, message):
    with pytest.raises(config.ConfigError, match=message):
        config.load(str(CONFIGS / file), [], of=config.Train, stage=stage)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda p: p.name)
def test_help_says_of_every_field_what_it_is(path, capsys):
    """The comment beside or above a field is its help text."""
    with pytest.raises(SystemExit):
        load(path.name, "--help")
    lines = [line.strip("│ \n") for line in capsys.readouterr().out.splitlines()]
    fields = [i for i, line in enumerate(lines) if line.startswith("--config.")]
    assert fields
    bare = [lines[i] for i in fields if lines[i + 1].startswith("(default")]
    assert not bare


def test_pipeline_variants_differ_in_one_thing():
    pipeline = load("ablation.py")
    stages = pipeline.stages()
    assert (
        dataclasses.replace(stages["sft_without_cpt"], name="sft", parent="cpt")
        == stages["sft"]
    )
    point, both = stages["student_point"], stages["distill"]
    assert dataclasses.replace(point, name="distill", objective=both.objective) == both
    assert (point.objective.alpha, point.objective.beta) == (1, 0)
    every = typing.get_args(config.Variant)
    stages = dataclasses.replace(pipeline, compare=every).stages()
    assert set(every) < set(stages)
    divergence = stages["student_kl"].objective
    assert divergence.loss == ("listwise_kl",) and not divergence.alpha
    for name, loss in (
        ("sft_pointwise", "sigmoid_cross_entropy"),
        ("sft_pairwise", "ranknet"),
    ):
        rank = dataclasses.replace(stages["sft"].objective, loss=(loss,))
        assert stages[name] == dataclasses.replace(
            stages["sft"], name=name, objective=rank
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: config.Mesh(data=0), "mesh.data"),
        (lambda: config.Distillation(alpha=0, beta=0), "nothing to minimise"),
        (lambda: config.Batch(size=10, accumulate=3), "10 .* 3"),
        (lambda: config.Text(teacher_length=2), "teacher_length"),
        (lambda: config.ClickRules(dev_fraction=1.0), "dev_fraction"),
        (lambda: config.Evaluate(reference="nobody"), "nobody"),
    ],
)
def test_settings_that_cannot_work(make, message):
    with pytest.raises(config.ConfigError, match=message):
        make()


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize("entry", ["train", "score", "evaluate", "export", "run"])
def test_entries_answer_help_without_a_config(entry):
    done = run(f"ranker.{entry}", "--help")
    assert done.returncode == 0 and "--workdir" in done.stdout


def test_errors_are_sentences_without_a_traceback():
    done = run("ranker.train", "--config", "configs/sft.py")
    assert done.returncode == 1
    assert "--workdir is missing" in done.stderr and "Traceback" not in done.stderr


def test_help_does_not_import_jax():
    code = (
        "import sys; sys.argv = ['train', '--config', 'configs/sft.py', '--help']\n"
        "import runpy\n"
        "try: runpy.run_module('ranker.train', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert 'jax' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_scores_of_an_input_have_a_name_of_their_own():
    score = load("score.py")
    assert score.name == "scores"
    assert config.replace(score, input="pairs/*.parquet").name == "pairs"
    assert config.replace(score, input="pairs/*.parquet", name="mine").name == "mine"
