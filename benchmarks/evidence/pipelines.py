"""Parts that are runs of the product's own stages, by its configs."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import time

import lists
import numpy as np
from lists import Collection
from setting import Run

from ranker import config
from ranker.training import evaluate, export, score, train

ROOT = pathlib.Path(__file__).resolve().parents[2]


def pipeline(name: str, *flags: str) -> config.Pipeline:
    """A config of configs/ with `--config.` flags as on the command line."""
    given = [f"--config.{flag}" for flag in flags]
    return config.load(str(ROOT / "configs" / name), given, of=config.Pipeline)


def read_run(path: pathlib.Path) -> dict[tuple[str, str], float]:
    """Scores by query and document of a TREC run."""
    from ranker.data import formats

    return {
        (one.query_id, one.document_id): one.score for one in formats.read_run(path)
    }


def scores_of(path: pathlib.Path, data: Collection, rows: np.ndarray) -> np.ndarray:
    """Scores [len(rows), K] of a TREC run, in the order of the candidates."""
    found = read_run(path)
    return np.float32(
        [[found[data.ids[r], d] for d in data.documents[r]] for r in rows]
    )


# --- the synthetic collection ---


def quickstart(run: Run) -> config.Pipeline:
    """The quickstart with as many test queries as E1 asks for."""
    grid, smoke = run.sizes.synthetic, run.sizes.name == "smoke"
    world = "data.world."
    return pipeline(
        "quickstart.py:smoke" if smoke else "quickstart.py",
        f"{world}labelled_queries={grid.labelled}",
        f"{world}unlabelled_queries={grid.unlabelled}",
        f"{world}dev_queries={grid.dev}",
        f"{world}test_queries={grid.test}",
        f"{world}candidates={grid.candidates}",
    )


def synthetic_teacher(run: Run) -> pathlib.Path:
    """Workdir of the synthetic collection with a teacher and all of its scores."""
    workdir = run.out / "synthetic"
    stages = quickstart(run).stages()
    for name in ("cpt", "sft"):
        train.train(stages[name], workdir, replace=True)
    score.score_chunks(stages["scores"], workdir, replace=True)
    evaluate.evaluate_systems(measured(stages["evaluate"]), workdir, replace=True)
    return workdir


def measured(stage: config.Stage) -> config.Evaluate:
    """The stage that ranks test by the teacher alone."""
    assert isinstance(stage, config.Evaluate)
    return dataclasses.replace(
        stage,
        systems=("sft",),
        reference="bm25",
        measures=("NDCG@10",),
        permutations=1000,
    )


def synthetic_scores(workdir: pathlib.Path, data: Collection) -> np.ndarray:
    """The teacher's raw scores [Q, K]; 0 on dev, which nobody asks for."""
    found = read_chunks(workdir / "scores" / "chunks")
    found |= read_run(workdir / "evaluate" / "sft.trec")
    return np.float32(
        [
            [found.get((query, one), 0.0) for one in documents]
            for query, documents in zip(data.ids, data.documents, strict=True)
        ]
    )


# --- E2: continued pre-training ---

ARMS = ("none", "shuffled", "clicks")
CHAT = (
    "<|im_start|>user\nDoes the passage answer the query? Reply Yes or No.\n"
    "Query: {query}\n|||Passage: {both}|||<|im_end|>\n<|im_start|>assistant\n"
)


def recipe(size: int, steps: int, rate: float, rank: int = 0) -> config.Recipe:
    """How a decoder trains: `size` rows or lists a step, 10 % of warm-up."""
    return config.Recipe(
        optim=config.Optim(learning_rate=rate, warmup=steps // 10),
        batch=config.Batch(size=size, list_size=8),
        loop=config.Loop(steps=steps, log_every=20, save_every=50, eval_queries=20),
        lora=config.Lora(rank=rank),
    )


def language_model(run: Run, folder: pathlib.Path, name: str) -> config.Pipeline:
    """A pipeline whose teacher is SmolLM2 ("smollm") or a fresh decoder ("scratch")."""
    size = run.sizes.smollm if name == "smollm" else run.sizes.scratch
    smoke = run.sizes.name == "smoke"
    made = pipeline("beir.py:smoke", f"data.path={folder}", "data.max_queries=0")
    teacher = made.teacher
    if name == "smollm":
        teacher = config.Pretrained(path=str(run.args.smollm))
    fast, slow = (2e-4, 1e-4) if name == "smollm" else (1e-3, 3e-4)
    return dataclasses.replace(
        made,
        teacher=teacher,
        data=dataclasses.replace(made.data, candidates=4 if smoke else 10),
        text=config.Text(
            teacher_vocab_size=8192,
            student_vocab_size=8192,
            teacher_length=size.length,
            student_length=size.length,
        ),
        cpt=recipe(size.rows, size.cpt_steps, fast, size.rank),
        sft=recipe(4 if name == "scratch" else 2, size.sft_steps, slow, size.rank),
    )


def pretrain(run: Run, data: str, name: str) -> None:
    """E2: every arm and seed; OUT/e2-NAME-DATA/ARM-SEED holds a run of each.

    Arms: none; `shuffled`, as many tokens of the same log under others' queries;
    `clicks`. The fine-tuning is the same for all.
    """
    size = run.sizes.smollm if name == "smollm" else run.sizes.scratch
    folder = language_folder(run, data, name)
    made = language_model(run, folder, name)
    for seed in range(size.seeds):
        for arm in ARMS:
            workdir = run.out / f"e2-{name}-{data}" / f"{arm}-{seed}"
            teach(with_arm(made, folder, arm, seed), workdir)


def with_arm(
    made: config.Pipeline, folder: pathlib.Path, arm: str, seed: int
) -> config.Pipeline:
    """The pipeline of one arm of E2."""
    log = {"shuffled": "clicks_shuffled.jsonl"}.get(arm, "clicks.jsonl")
    data = dataclasses.replace(made.data, click_log=str(folder / log))
    cpt = made.cpt
    if arm == "none":
        assert cpt is not None
        cpt = dataclasses.replace(cpt, loop=dataclasses.replace(cpt.loop, steps=0))
    return dataclasses.replace(made, data=data, cpt=cpt, seed=seed)


def teach(settings: config.Pipeline, workdir: pathlib.Path) -> None:
    """Trains a pipeline's teacher, ranks test with it, and notes what it took."""
    if (workdir / "seconds").exists():
        return
    start = time.monotonic()
    stages = settings.stages()
    for name in ("cpt", "sft"):
        if name in stages:
            train.train(stages[name], workdir, replace=True)
    trained = time.monotonic() - start
    evaluate.evaluate_systems(measured(stages["evaluate"]), workdir, replace=True)
    note = {"trained": trained, "seconds": time.monotonic() - start}
    if isinstance(settings.teacher, config.Pretrained):
        note["parameters"] = count(pathlib.Path(settings.teacher.path))
    (workdir / "seconds").write_text(json.dumps(note))


def count(folder: pathlib.Path) -> int:
    """Parameters of a checkpoint's body, by the headers of its files."""
    from safetensors import safe_open

    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]
            total += sum(int(np.prod(shape)) for shape in shapes)
    return total


def language_folder(run: Run, data: str, name: str) -> pathlib.Path:
    """The collection of E2 for one model, with both of its logs."""
    folder = run.out / "folders" / f"{data}-{name}"
    if data == "nqqed":
        lists.write_folder(run.nqqed, folder, run.sizes.queries)
    elif not (folder / "clicks.jsonl").exists():
        make = [ROOT / "benchmarks" / "medquad_clicks.py", run.args.medquad, folder]
        subprocess.run([sys.executable, *map(str, make)], check=True)
    if (data, name) == ("medquad", "smollm") and run.sizes.medquad_queries:
        keep_first(folder / "qrels" / "test.tsv", run.sizes.medquad_queries)
    if not (folder / "clicks_shuffled.jsonl").exists():
        lists.write_shuffled(folder)
    return folder


def keep_first(path: pathlib.Path, queries: int) -> None:
    """Leaves the judgements of the first queries of a file alone."""
    header, *rows = path.read_text().splitlines()
    kept = list(dict.fromkeys(row.split("\t")[0] for row in rows))[:queries]
    rows = [row for row in rows if row.split("\t")[0] in kept]
    path.write_text("\n".join([header, *rows]) + "\n")


# --- SmolLM2 as a teacher, and untrained ---


def llm_teacher(run: Run) -> dict[tuple[str, str], float]:
    """Raw scores by query and document, of E2's fine-tuned SmolLM2 without clicks."""
    data, folder = run.nqqed, run.out / "folders" / "to_score"
    rows = asked(run)
    if not (folder / "runs" / "all.trec").exists():
        lists.write_texts(data, rows, folder)
        lists.write_bm25(data, rows, folder / "runs" / "all.trec")
    workdir = run.out / "e2-smollm-nqqed" / "none-0"
    collection = language_folder(run, "nqqed", "smollm")
    made = with_arm(language_model(run, collection, "smollm"), collection, "none", 0)
    teach(made, workdir)
    stage = made.stages()["scores"]
    assert isinstance(stage, config.Score)
    stage = dataclasses.replace(stage, name="all_pairs", input=str(folder), rows=16)
    score.score_chunks(stage, workdir, replace=True)
    return read_chunks(workdir / "all_pairs" / "chunks")


def asked(run: Run) -> np.ndarray:
    """Rows of nqqed that a teacher has to score."""
    parts = run.nqqed.parts
    scored = parts["unlabelled"][: run.sizes.nqqed.scored]
    return np.concatenate([scored, parts["dev"], parts["test"]])


def yes_no(run: Run) -> None:
    """E4: untrained SmolLM2, asked if a passage answers; logit of Yes less No's."""
    made = language_model(run, language_folder(run, "nqqed", "smollm"), "smollm")
    asked = config.Pretrained(path=str(run.args.smollm), score_tokens=("Yes", "No"))
    still = dataclasses.replace(
        made.sft, loop=config.Loop(steps=0), lora=config.NO_LORA
    )
    none = dataclasses.replace(made.cpt, loop=config.Loop(steps=0), lora=config.NO_LORA)
    text = dataclasses.replace(made.text, teacher_template=CHAT)
    teach(
        dataclasses.replace(made, teacher=asked, sft=still, cpt=none, text=text),
        run.out / "e4-yes_no",
    )


def read_chunks(folder: pathlib.Path) -> dict[tuple[str, str], float]:
    """Scores by query and document, of the chunks of a score stage."""
    import pyarrow.dataset as tables

    found = tables.dataset(folder, format="parquet").to_table()
    names = ("query_id", "document_id", "score")
    columns = [found[name].to_pylist() for name in names]
    return {(q, d): s for q, d, s in zip(*columns, strict=True)}


# --- E5: parity, and the warm start of E0 ---


def minilm(run: Run) -> config.Pipeline:
    """MiniLM fine-tuned by the product, with dropout on attention weights."""
    folder = lists.write_folder(
        run.nqqed, run.out / "folders" / "parity", run.sizes.parity_queries
    )
    grid = run.sizes.nqqed
    made = pipeline("evidence.py:nqqed", f"data.path={folder}", "data.max_queries=0")
    steps = run.sizes.parity_steps
    return dataclasses.replace(
        made,
        data=dataclasses.replace(made.data, candidates=grid.candidates),
        text=dataclasses.replace(
            made.text, teacher_length=grid.length, student_length=grid.length
        ),
        teacher=config.Pretrained(path=str(run.args.minilm), attention_dropout=0.1),
        student=config.Pretrained(path=str(run.args.minilm)),
        sft=dataclasses.replace(
            made.sft,
            optim=dataclasses.replace(made.sft.optim, warmup=steps // 10),
            loop=config.Loop(steps=steps, log_every=max(steps // 10, 1)),
        ),
    )


def tune_minilm(run: Run, seed: int) -> config.Train:
    """The stage sft-SEED in OUT/e5, trained."""
    stage = minilm(run).stages()["sft"]
    assert isinstance(stage, config.Train)
    stage = dataclasses.replace(stage, name=f"sft-{seed}", seed=seed)
    train.train(stage, run.out / "e5", replace=True)
    return stage


def parity(run: Run) -> None:
    """E5: ours and sentence-transformers', seed by seed, then all of ours measured."""
    workdir = run.out / "e5"
    for seed in range(run.sizes.parity_seeds):
        if (workdir / f"parity-{seed}.json").exists():
            continue
        stage = tune_minilm(run, seed)
        made = minilm(run).stages()["evaluate"]
        ours = dataclasses.replace(measured(made), systems=(stage.name,))
        evaluate.evaluate_systems(ours, workdir, replace=True)
        flags = [
            *("--workdir", workdir, "--model", run.args.minilm, "--families", "sft"),
            *("--stage", stage.name, "--runs", workdir / "theirs"),
            *("--attention_dropout", 0.1),
        ]
        found = subprocess.run(
            [sys.executable, ROOT / "benchmarks" / "quality.py", *map(str, flags)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        (workdir / f"ours-{seed}.trec").write_bytes(
            (workdir / "evaluate" / f"{stage.name}.trec").read_bytes()
        )
        (workdir / f"parity-{seed}.json").write_text(found.splitlines()[-1])


def warm_checkpoint(run: Run) -> pathlib.Path:
    """A Hugging Face folder of the fine-tuned MiniLM, for students that begin warm."""
    stage = tune_minilm(run, 0)
    made = minilm(run).stages()["export"]
    assert isinstance(made, config.Export)
    settings = dataclasses.replace(
        made, stage=stage.name, folder="warm", onnx=config.Onnx(precision="none")
    )
    return export.export(settings, run.out / "e5", replace=True)
