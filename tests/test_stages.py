"""All stages in one workdir, each on the last one's output; and what stops them."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import sys
import time

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from ranker import cli, config, errors, manifests, run, sharding
from ranker.data.prepare import prepare
from ranker.errors import DataError
from ranker.reporting import report as reporting
from ranker.serving import server, starting
from ranker.serving.batching import Limits
from ranker.training import inputs
from ranker.training import train as loop
from ranker.training.checkpoint import Checkpoints
from ranker.training.evaluate import evaluate_systems
from ranker.training.export import export
from ranker.training.failure import load_failure
from ranker.training.inputs import scored_lists
from ranker.training.score import score_chunks
from ranker.training.train import train
from ranker.training.trained import load_trained

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


WORLD = dict(
    num_topics=6,
    labelled_queries=8,
    unlabelled_queries=10,
    dev_queries=4,
    test_queries=12,
    clicks=100,
    candidates=5,
)


def tiny(path="", length=32, **fields):
    """The quickstart, with models and data of a minute."""

    def recipe(steps):
        return config.Recipe(
            optim=config.Optim(learning_rate=1e-3, warmup=1),
            batch=config.Batch(size=8, list_size=4),
            loop=config.Loop(steps=steps, log_every=2, save_every=4),
        )

    return config.Pipeline(
        data=config.Data(
            path=path,
            candidates=5,
            max_queries=12 if path else 0,
            world=config.World(**WORLD),
        ),
        text=config.Text(teacher_length=length, student_length=length - 8),
        teacher=config.Decoder(
            num_layers=1,
            embed_dim=16,
            num_heads=2,
            num_kv_heads=1,
            head_dim=8,
            mlp_dim=16,
        ),
        student=config.Encoder(num_layers=1, embed_dim=16, num_heads=2, mlp_dim=16),
        cpt=recipe(6),
        sft=recipe(4),
        distill=recipe(4),
        labels=recipe(2),
        **{"rows": 16, **fields},
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run.run(tiny(), folder)
    return folder


def test_the_whole_run_leaves_what_it_says(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    assert list(summary["systems"]) == ["bm25", "sft", "student_labels", "distill"]
    for name, system in summary["systems"].items():
        assert system["queries"] == 12
        assert 0 <= system["metrics"]["NDCG@5"] <= 1
        assert (system["p_value"]["NDCG@5"] is None) == (name == "distill")
        assert (workdir / "evaluate" / f"{name}.trec").is_file()
    bm25 = summary["systems"]["bm25"]
    low, high = bm25["interval"]["NDCG@5"]
    assert low <= bm25["difference"]["NDCG@5"] <= high
    assert bm25["p_holm"]["NDCG@5"] >= bm25["p_value"]["NDCG@5"]
    assert summary["agreement"]["distill"]["teacher"] == "sft"
    across = summary["across_queries"]
    assert list(across) == list(summary["systems"])
    for one in across.values():
        assert 0 <= one["accuracy"] <= 1 and one["pairs"] > 0
        assert 0 <= one["ece"]["platt"] <= 1 and 0 <= one["brier"]["isotonic"] <= 1
    lines = (workdir / "evaluate" / "per_query.tsv").read_text().splitlines()
    assert len(lines) == 1 + 4 * 12 and lines[0].endswith("kendall\tspearman")
    table = (workdir / "evaluate" / "table.md").read_text()
    assert "| distill |" in table and "calibration error, platt" in table
    assert (workdir / "export" / "model.safetensors").is_file()
    for stage in ("cpt", "sft", "student_labels", "distill"):
        manifest = manifests.load_manifest(workdir / stage)
        assert manifest.done and any("prepare/" in one for one in manifest.inputs)
        assert manifest.facts["tokenizer"] and manifest.facts["template"]
        lines = (workdir / stage / "metrics.jsonl").read_text().splitlines()
        values = [json.loads(line) for line in lines]
        assert all(np.isfinite(v["loss"]) for v in values if "loss" in v)
        # The first step was compiled, so it tells no speed.
        assert values[0]["step"] == 1 and "tokens_per_second" not in values[0]
        assert "tokens_per_second" in values[1]
    assert (
        manifests.load_manifest(workdir / "sft").inputs["cpt"]
        == manifests.load_manifest(workdir / "cpt").key
    )


# Ten subjects in each language, and what stands between words.
LANGUAGES = {
    "Chinese": (
        "苹果手机 北京天气 红烧肉 高铁时刻 图书馆 感冒症状 汽车保险 足球比赛 电影 签证",
        "",
    ),
    "Japanese": (
        "東京の天気 ラーメン 新幹線 図書館 風邪 自動車保険 サッカー 映画 料理 旅",
        "",
    ),
    "Thai": (
        "อาหารไทย รถไฟ โรงแรม อากาศ ห้องสมุด ไข้หวัด ประกันภัย ฟุตบอล ภาพยนตร์ วีซ่า",
        "",
    ),
    "Hindi": (
        "मौसम टिकट व्याकरण पुस्तकालय ज़ुकाम बीमा फुटबॉल फिल्म वीज़ा खाना",
        " ",
    ),
}


def test_chinese_japanese_thai_and_hindi_run_to_the_end(tmp_path):
    """Documents tell twice of one subject and once of another; a query names one."""
    documents, queries, judged = [], [], {"train": [], "dev": [], "test": []}
    for name, (words, between) in LANGUAGES.items():
        subjects = words.split()
        for at, subject in enumerate(subjects):
            split = "test" if at < 3 else "dev" if at < 4 else "train"
            queries.append({"_id": f"{name}{at}", "text": subject})
            both = between.join([subject, subjects[at - 5]])
            queries.append({"_id": f"{name}{at}-unlabelled", "text": both})
            for other in (1, 2):
                text = between.join([subject, subject, subjects[(at + other) % 10]])
                documents.append({"_id": f"{name}{at}-{other}", "text": text})
                judged[split].append(f"{name}{at}\t{name}{at}-{other}\t1\n")
    folder = tmp_path / "collection"
    (folder / "qrels").mkdir(parents=True)
    for file, rows in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{file}.jsonl").write_text("".join(lines), encoding="utf-8")
    for split, lines in judged.items():
        head = "query-id\tcorpus-id\tscore\n"
        (folder / "qrels" / f"{split}.tsv").write_text(head + "".join(lines))
    pipeline = tiny(str(folder))
    data = dataclasses.replace(pipeline.data, max_queries=0)
    workdir = tmp_path / "run"
    run.run(dataclasses.replace(pipeline, data=data), workdir)
    report = json.loads((workdir / "prepare" / "report.json").read_text())
    assert report["splits"]["test"]["candidate_recall"] == 1.0
    assert report["splits"]["unlabelled"]["queries"] == 40
    summary = json.loads((workdir / "summary.json").read_text())
    assert list(summary["systems"]) == ["bm25", "sft", "student_labels", "distill"]
    assert all(one["queries"] == 12 for one in summary["systems"].values())
    for query, scores in trec_scores(workdir / "evaluate" / "bm25.trec").items():
        best = sorted(scores, key=lambda one: -scores[one])[:2]
        assert sorted(best) == [f"{query}-1", f"{query}-2"]
    assert (workdir / "export" / "model.safetensors").is_file()


def trec_scores(path):
    """Query -> document -> score of a TREC run."""
    found = {}
    for line in path.read_text().splitlines():
        query, _, document, _, score, _ = line.split()
        found.setdefault(query, {})[document] = float(score)
    return found


def test_a_cascade_is_measured_as_it_is_served(workdir, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    cascade = config.Cascade(first="student_labels", second="distill", keep=2)
    stage = dataclasses.replace(stages()["evaluate"], cascades=(cascade,))
    summary = evaluate_systems(stage, copy, replace=True)
    name = "student_labels-2-distill"
    assert 0 <= summary["systems"][name]["metrics"]["NDCG@5"] <= 1
    first, second, both = (
        trec_scores(copy / "evaluate" / f"{one}.trec")
        for one in ("student_labels", "distill", name)
    )
    for query, scores in both.items():
        by_first = sorted(first[query], key=lambda d: -first[query][d])
        kept = sorted(by_first[:2], key=lambda d: -second[query][d])
        found = sorted(scores, key=lambda d: -scores[d])
        assert found == [*kept, *by_first[2:]]
    cheap = dataclasses.replace(
        stages()["export"], stage="student_labels", folder="export_first"
    )
    export(cheap, copy)
    limits, problems = Limits(), []
    state = server.State(limits)

    def start():
        folders = copy / "export", copy / "export_first"
        return starting.start_cascade(*folders, 2, limits=limits)

    prepared = prepare(stage.data, stage.text, copy)
    record, corpus = prepared.lists("test")[0], prepared.corpus()
    given = [corpus[int(i)] for i in record.documents]
    with TestClient(server.make_app(state, start, problems.append)) as client:
        while client.get("/ready").status_code != 200:
            assert not problems
            time.sleep(0.01)
        body = {
            "query": record.query,
            "documents": [{"title": one.title, "text": one.text} for one in given],
        }
        answer = client.post("/rerank", json=body).json()
    assert answer["score_kind"].startswith("cascade")
    ids = [given[one["index"]].id for one in answer["results"]]
    measured = [both[record.query_id][document] for document in ids]
    assert len(measured) == len(given) and (np.diff(measured) <= 1e-4).all()


def test_teacher_scores_are_raw_records(workdir):
    table = pq.read_table(workdir / "scores" / "chunks")
    names = ["pair", "query_id", "document_id", "document", "score"]
    assert table.column_names == names
    assert table.num_rows == 90 and str(table["score"].type) == "float"
    manifest = manifests.load_manifest(workdir / "scores")
    assert manifest.facts["teacher"] == "sft" and manifest.facts["pairs"] == 90
    assert manifest.facts["teacher_facts"]["tokenizer"]


def test_the_whole_run_can_be_reported(workdir, tmp_path):
    page = reporting.write_report(workdir, output=tmp_path / "report.html").read_text()
    shutil.rmtree(workdir / "report")
    for stage in ("prepare", "cpt", "sft", "scores", "distill", "evaluate", "export"):
        assert manifests.load_manifest(workdir / stage).key in page
    assert "won most against" in page and "<polyline" in page


def test_query_fields_make_slices_and_are_checked(workdir, tmp_path):
    path = tmp_path / "fields.tsv"
    prepared = prepare(tiny().data, tiny().text, workdir)
    lists = prepared.lists("test")
    queries = [lists[at].query_id for at in range(len(lists))]
    rows = [f"{query}\t{at % 2}" for at, query in enumerate(queries)]
    path.write_text("\n".join(["query_id\tfrequency", *rows]))
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    stage = dataclasses.replace(stages()["evaluate"], query_fields=str(path))
    summary = evaluate_systems(stage, copy, replace=True)
    assert [one["queries"] for one in summary["slices"]] == [6, 6]
    missing = dataclasses.replace(stage, query_fields=str(tmp_path / "no.tsv"))
    with pytest.raises(DataError, match="no.tsv: no such file"):
        evaluate_systems(missing, copy, replace=True)


def test_nothing_is_done_twice(workdir, capsys):
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    run.run(tiny(), workdir)
    after = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    changed = {p.name for p in after if before.get(p) != after[p]}
    assert changed == {"summary.json"}  # the table's numbers, written again
    assert "NDCG@5" in capsys.readouterr().out


def test_only_what_depends_on_a_change_runs_again(workdir, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    alpha = config.Distillation(alpha=0.5, beta=1.0)
    run.run(dataclasses.replace(tiny(), distillation=alpha), copy)
    shown = capsys.readouterr().out
    again = [
        name
        for name in ("cpt", "sft", "scores", "distill")
        if f"[{name}] runs" in shown
    ]
    assert again == ["distill"] and "objective.alpha: 1.0 -> 0.5" in shown
    assert "[evaluate] runs again" in shown and "[export] runs again" in shown


def test_a_change_reaches_what_reads_it_and_nothing_else(workdir, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    text = dataclasses.replace(tiny().text, student_vocab_size=300)
    world = config.World(**{**WORLD, "test_queries": 10})
    changed = dataclasses.replace(
        tiny(), text=text, data=dataclasses.replace(tiny().data, world=world)
    )
    run.run(changed, copy)
    shown = capsys.readouterr().out
    again = {name for name in changed.stages() if f"[{name}] runs again" in shown}
    assert again == {"student_labels", "distill", "evaluate", "export"}
    assert "[prepare] runs again" in shown


def dry(settings, workdir, capsys):
    """Stage -> what the dry run says of it; nothing is written."""
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    capsys.readouterr()
    run.dry_run(settings, workdir)
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    lines = capsys.readouterr().out.splitlines()
    return {line.split("] ")[0][1:]: line.split("] ")[1] for line in lines}


def test_a_dry_run_says_what_would_run_and_why(workdir, tmp_path, capsys):
    names = ["prepare", *tiny().stages()]
    assert dry(tiny(), workdir, capsys) == dict.fromkeys(names, "done")
    said = dry(tiny(), tmp_path, capsys)
    assert list(said) == names and all("would run:" in line for line in said.values())

    def runs(**fields):
        said = dry(dataclasses.replace(tiny(), **fields), workdir, capsys)
        return {name: line for name, line in said.items() if line != "done"}

    said = runs(distillation=config.Distillation(alpha=0.5, beta=1.0))
    assert list(said) == ["distill", "evaluate", "export"]
    assert said["distill"] == "would run again: objective.alpha: 1.0 -> 0.5"
    said = runs(text=dataclasses.replace(tiny().text, student_vocab_size=300))
    assert list(said) == [
        "prepare",
        "student_labels",
        "distill",
        "evaluate",
        "export",
    ]
    assert said["prepare"].endswith("text.student_vocab_size: 2048 -> 300")
    assert "prepare/student: " in said["distill"]
    said = runs(
        text=dataclasses.replace(tiny().text, teacher_template="qwen3_reranker")
    )
    assert said.keys() == set(names) - {"student_labels"}


def test_a_dry_run_says_where_a_stage_goes_on(workdir, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    manifests.reopen(manifests.load_manifest(copy / "sft"), copy / "sft")
    victim = copy / "export" / "config.json"
    victim.write_text(victim.read_text() + " ")
    said = dry(tiny(), copy, capsys)
    assert said.pop("sft") == "would resume: from the checkpoint at step 4"
    assert said.pop("export").startswith("would run again: it is damaged: config.json")
    assert set(said.values()) == {"done"}


def stages():
    return tiny().stages()


def test_other_settings_in_a_finished_stage_are_refused(workdir):
    changed = dataclasses.replace(stages()["sft"], seed=7)
    with pytest.raises(errors.StageError, match="other settings: seed: 0 -> 7"):
        train(changed, workdir)


def test_a_parent_of_the_wrong_kind_is_refused(workdir):
    student = dataclasses.replace(stages()["student_labels"], name="x")
    cases = [
        (
            train,
            dataclasses.replace(student, parent="scores"),
            "needs a cpt or sft stage",
        ),
        (train, dataclasses.replace(student, parent="nowhere"), "does not contain one"),
        (train, dataclasses.replace(student, parent="cpt"), "different models"),
        (
            train,
            dataclasses.replace(stages()["distill"], name="x", scores="sft"),
            "needs a score stage",
        ),
        (
            score_chunks,
            dataclasses.replace(stages()["scores"], name="x", teacher="cpt"),
            "is a cpt",
        ),
        (
            export,
            dataclasses.replace(stages()["export"], stage="scores"),
            "is a score",
        ),
        (
            evaluate_systems,
            dataclasses.replace(
                stages()["evaluate"], systems=("cpt",), reference="cpt"
            ),
            "is a cpt",
        ),
    ]
    for call, settings, message in cases:
        with pytest.raises(errors.StageError, match=message):
            call(settings, workdir)


def test_a_child_may_compute_otherwise_than_its_parent(workdir, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    stage = stages()["sft"]
    model = dataclasses.replace(stage.model, dtype="bfloat16", remat="full")
    train(
        dataclasses.replace(
            stage,
            name="low",
            model=model,
            loop=dataclasses.replace(stage.loop, steps=1),
        ),
        copy,
    )
    manifest = manifests.load_manifest(copy / "low")
    assert manifest.done and manifest.settings["model"]["dtype"] == "bfloat16"
    other = dataclasses.replace(stage.model, mlp_dim=24)
    with pytest.raises(errors.StageError, match="different models: mlp_dim 16 -> 24"):
        train(dataclasses.replace(stage, name="wide", model=other), copy)


def test_an_unknown_measure_is_found_before_any_work(tmp_path):
    with pytest.raises(config.ConfigError, match="'NDGC@5'; did you mean NDCG@k"):
        run.run(tiny(measures=("NDGC@5",)), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scale", ["raw", "data", "labels"])
def test_targets_are_the_teachers_scores_on_the_scale_asked_for(workdir, scale):
    stage = stages()["distill"]
    objective = config.Distillation(target_scale=scale)
    stage = dataclasses.replace(stage, objective=objective)
    prepared = prepare(tiny().data, tiny().text, workdir)
    lists, targets = scored_lists(stage, prepared, workdir)
    raw = pq.read_table(workdir / "scores" / "chunks")["score"].to_numpy()
    found = np.concatenate(list(targets))
    assert len(lists) == len(targets)
    if scale == "raw":
        np.testing.assert_array_equal(found, raw)
    elif scale == "data":
        np.testing.assert_allclose(found, (raw - raw.mean()) / raw.std(), atol=1e-4)
    else:
        train_lists = prepared.lists("train")
        grades = [train_lists[i].labels for i in range(len(train_lists))]
        grades = np.concatenate(grades)
        line = np.polyfit(raw[: len(grades)], grades, 1)
        np.testing.assert_allclose(found, np.polyval(line, raw), rtol=1e-3, atol=1e-3)


def test_a_scale_that_cannot_be_fitted_is_refused(workdir, monkeypatch):
    monkeypatch.setattr(inputs, "fit_affine", lambda scores, grades: (0.0, 0.0))
    stage = dataclasses.replace(
        stages()["distill"],
        name="x",
        objective=config.Distillation(target_scale="labels"),
    )
    with pytest.raises(config.ConfigError, match="slope 0,.*another scale"):
        train(stage, workdir)


def test_dev_is_measured(workdir):
    assert manifests.load_manifest(workdir / "sft").facts["metrics"]["dev_ndcg@5"] > 0


def test_other_data_in_a_workdir_is_refused(workdir):
    other = dataclasses.replace(tiny().data, world=config.World(seed=5))
    with pytest.raises(errors.StageError, match="other settings: data.world.*seed"):
        prepare(other, tiny().text, workdir)


def test_a_stage_alone_reads_what_was_prepared(workdir, tmp_path, monkeypatch, capsys):
    """Whatever data its config file names; flags win."""
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    flags = ["--config", str(ROOT / "configs" / "export.py"), "--workdir", str(copy)]
    monkeypatch.setattr("sys.argv", ["export", *flags, "--config.stage=sft"])
    called = []

    def call(settings, folder):
        called.append(settings)
        return export(settings, folder, replace=False)

    with pytest.raises(SystemExit, match=f"error: .*mv {copy}/export {copy}/export.*"):
        cli.main(config.Export, lambda: call, "")
    assert called[0].data == tiny().data and called[0].text == tiny().text
    monkeypatch.setattr("sys.argv", [*sys.argv, "--config.folder=other"])
    cli.main(config.Export, lambda: call, "")
    assert (copy / "other" / "model.safetensors").is_file()
    monkeypatch.setattr("sys.argv", [*sys.argv, "--config.data.world.seed=3"])
    with pytest.raises(SystemExit, match="without the flags --config.data.FIELD"):
        cli.main(config.Export, lambda: call, "")
    assert called[2].data == config.replace(
        tiny().data, world=config.replace(tiny().data.world, seed=3)
    )


def test_a_message_names_three_differences():
    old = {f"a.b{i}": i for i in range(9)}
    differing = [f"text.{k}: {v} -> 0" for k, v in old.items()]
    said = manifests.brief([*differing, "data.path: None -> /x"])
    assert (
        said == "data.path: None -> /x, text.a.b0: 0 -> 0, text.a.b1: 1 -> 0 and 7 more"
    )
    assert manifests.brief(["seed: 0 -> 7"]) == "seed: 0 -> 7"


def test_queries_are_never_cut(tmp_path):
    """One too long for a row stops the run, or is dropped and counted."""
    data = config.Data(world=config.World(**{**WORLD, "seed": 2}))
    text = config.Text(teacher_length=11, student_length=24)
    with pytest.raises(
        DataError, match="no room .* text.teacher_length 11 .*on_error=skip"
    ):
        prepare(data, text, tmp_path)
    skip = dataclasses.replace(data, on_error="skip")
    prepared = prepare(skip, text, tmp_path, replace=True)
    splits = prepared.manifest.facts["report"]["splits"]
    assert "too long for text.teacher_length" in splits["train"]["dropped"]
    # Judgements of a held-out query stay, and it counts 0.
    assert "too long for text.teacher_length" in splits["test"]["dropped"]
    assert len(prepared.lists("test")) == data.world.test_queries
    told = prepared.manifest.facts["report"]["clicks"]
    written = {split: len(prepared.clicks(split)) for split in ("train", "dev")}
    assert told["examples"] == written
    reasons = ("too long for text.teacher_length", "too long for text.student_length")
    left_out = sum(told["dropped"].get(reason, 0) for reason in reasons)
    whole = prepare(data, config.Text(), tmp_path / "whole")
    assert left_out == sum(len(whole.clicks(s)) - n for s, n in written.items()) > 0


def test_batches_that_do_not_divide_over_the_devices(workdir):
    stage = dataclasses.replace(
        stages()["cpt"], name="x", batch=config.Batch(size=12, list_size=2)
    )
    with pytest.raises(
        config.ConfigError, match="12 .* not divisible by the 8 data shards"
    ):
        train(stage, workdir)


@pytest.mark.parametrize("name", ["cpt", "sft", "distill"])
def test_a_stage_that_was_stopped_goes_on_to_the_same_result(
    workdir, name, monkeypatch
):
    """Stopped at step 3, after the checkpoint of step 2: as if never stopped."""
    stage = stages()[name]
    stage = dataclasses.replace(
        stage,
        loop=dataclasses.replace(stage.loop, steps=4, save_every=2),
        name=f"{name}_a",
    )
    train(stage, workdir)
    stopped = dataclasses.replace(stage, name=f"{name}_b")
    make_step = loop.make_step

    def dying(*arguments):
        step = make_step(*arguments)

        def once(state, batch):
            if int(state.step) == 3:
                raise KeyboardInterrupt
            return step(state, batch)

        return once

    monkeypatch.setattr(loop, "make_step", dying)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, workdir)
    assert not manifests.load_manifest(workdir / stopped.name).done
    with pytest.raises(errors.StageError, match="has not finished"):
        manifests.require_stage(workdir, stopped.name, kinds=(name,), by="a test")
    monkeypatch.setattr(loop, "make_step", make_step)
    train(stopped, workdir)
    a, b = (params_of(workdir, f"{name}_{x}") for x in "ab")
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def params_of(workdir, name):
    prepared = prepare(tiny().data, tiny().text, workdir)
    mesh = sharding.make_mesh(config.Mesh())
    kinds = ("cpt", "sft", "distill")
    trained = load_trained(workdir, name, prepared, mesh, kinds=kinds, by="a test")
    return jax.device_get(trained.params)


def test_a_loss_that_is_not_finite_stops_the_run(workdir):
    """The state before the step is kept, and the step can be taken again."""
    stage = dataclasses.replace(
        stages()["sft"],
        name="broken",
        optim=config.Optim(learning_rate=1e30, warmup=0, clip_norm=0),
    )
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=r"at step 2; .*learning_rate"):
            train(stage, workdir)
    folder = workdir / "broken"
    assert Checkpoints(folder).steps == [1]
    report, arrays = load_failure(folder / "failures" / "step_2")
    assert report["checkpoint"] == 1 and "loss" in report["metrics"]
    queries = {
        one.query_id
        for one in prepare(tiny().data, tiny().text, workdir).lists("train")
    }
    assert report["records"] and set(report["records"]) <= queries
    assert arrays["rows.tokens"].ndim == 3 and arrays["where"].any()


def test_a_stage_told_to_stop_saves_and_leaves(workdir, monkeypatch):
    """What tells it is SIGTERM, in tests/training/test_preemption.py."""
    stage = dataclasses.replace(stages()["cpt"], name="stopped")

    @contextlib.contextmanager
    def watch():
        yield lambda step: step == 3

    monkeypatch.setattr(loop.preemption, "watch", watch)
    with pytest.raises(errors.Stopped, match="saved step 3 of 6"):
        train(stage, workdir)
    assert Checkpoints(workdir / "stopped").latest == 3

    def stop(*_):
        raise errors.Stopped("now")

    with pytest.raises(SystemExit) as ended:
        cli.sentences(stop)
    assert ended.value.code == 75


def test_what_is_exported_scores_as_what_was_evaluated(workdir):
    from sentence_transformers import CrossEncoder

    prepared = prepare(tiny().data, tiny().text, workdir)
    record, corpus = prepared.lists("test")[0], prepared.corpus()
    documents = [corpus[int(row)] for row in record.documents]
    model = CrossEncoder(str(workdir / "export"), device="cpu")
    scores = model.predict(
        [(record.query, f"{one.title} {one.text}") for one in documents],
        show_progress_bar=False,
    )
    run_lines = (workdir / "evaluate" / "distill.trec").read_text().splitlines()
    ours = {
        line.split()[2]: float(line.split()[4])
        for line in run_lines
        if line.split()[0] == record.query_id
    }
    np.testing.assert_allclose(scores, [ours[one.id] for one in documents], atol=1e-4)


@pytest.mark.skipif(not SHARED.is_dir(), reason="real data is not beside the checkout")
def test_real_data(tmp_path):
    """A student on the labels; .ci/run runs every stage on the same folder."""
    stages = tiny(str(SHARED / "nqqed"), length=64).stages()
    student = stages["student_labels"]
    train(student, tmp_path)
    names = dict(systems=(student.name,), reference=student.name)
    evaluate_systems(dataclasses.replace(stages["evaluate"], **names), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["systems"]["bm25"]["metrics"]["NDCG@5"] > 0.5
    trained = summary["systems"][student.name]
    assert trained["queries"] == 12
    # One judged document a query makes no pair, and so no PNR.
    assert trained["metrics"]["PNR"] is None
    assert summary["systems"]["bm25"]["p_value"]["PNR"] is None
