"""The model card of an export: README.md, as hubs and colleagues read it."""

import json
import pathlib
from typing import Any

from ranker import config, manifests, storage
from ranker.models.folder import licence_of
from ranker.training.trained import Trained

FILE = "README.md"


def base_of(path: str, folder: pathlib.Path) -> dict[str, str]:
    """What a stage keeps of the checkpoint that it begins from, for a card."""
    return {"path": path, "licence": licence_of(folder)}


def write_card(
    folder: pathlib.Path,
    workdir: pathlib.Path,
    trained: Trained,
    report: dict[str, Any],
) -> None:
    """Writes README.md beside exported weights.

    Args:
      folder: of the export, with its contract.
      workdir: of the run; its summary.json has what was measured, if it is there.
      trained: the stage that is exported.
      report: what the data held, from preparing it.
    """
    base = _begins_from(workdir, trained.manifest)
    scores = trained.manifest.kind != "cpt"
    parts = [
        _front(base, scores),
        f"# {trained.name}",
        _what(trained, base, scores),
        _loading(folder) if scores else _loading_words(),
        _data(report),
        _measured(workdir, trained.name),
    ]
    with storage.writing(folder / FILE, "w") as file:
        file.write("\n\n".join(part for part in parts if part) + "\n")


def _begins_from(
    workdir: pathlib.Path, manifest: manifests.Manifest
) -> dict[str, str] | None:
    """The checkpoint at the beginning of a chain of stages; None: there is none."""
    base = manifests.TrainFacts.of(manifest.facts).begins_from
    if base:
        return base
    for name in manifest.inputs:
        found = manifests.load_manifest(workdir / name)
        if found is not None and found.kind in ("cpt", "sft", "distill"):
            return _begins_from(workdir, found)
    return None


def _front(base: dict[str, str] | None, scores: bool) -> str:
    lines = ["---"]
    if base:
        lines.append(f"base_model: {json.dumps(base['path'])}")
        if base["licence"]:
            lines.append(f"license: {base['licence']}")
    if scores:
        lines += ["library_name: sentence-transformers", "pipeline_tag: text-ranking"]
        lines += ["tags:", "- cross-encoder", "- reranker", "- ranker"]
    return "\n".join([*lines, "---"])


def _what(trained: Trained, base: dict[str, str] | None, scores: bool) -> str:
    model = trained.model
    reads = "decoder" if isinstance(model, config.Decoder) else "encoder"
    task = (
        "It scores how well a document answers a query" if scores else "It reads text"
    )
    parts = [
        f"A {model.family} {reads} of {model.num_layers} layers of width "
        f"{model.embed_dim}. {task}; pairs are cut to {trained.length} tokens."
    ]
    if base:
        under = base["licence"] or "unknown: see the base model"
        parts.append(f"It begins from {base['path']} (licence of the base: {under}).")
    else:
        parts.append("It begins from random weights.")
    return " ".join(parts)


def _loading(folder: pathlib.Path) -> str:
    promise = json.loads((folder / "ranker_contract.json").read_text())
    query, document = promise["query"], promise["document"]
    texts = f"""from sentence_transformers import CrossEncoder

query, title, text = "red planet", "Mars", "Mars looks red."
both = f"{{title}} {{text}}".strip()
model = CrossEncoder("{folder.name}")
pair = ({query!r}.format(query=query),
        {document!r}.format(title=title, text=text, both=both))
model.predict([pair])  # raw scores: higher is better, no sigmoid"""
    own = f"""import ranker

ranker.load("{folder.name}").rank("red planet", ["Mars looks red.", "Bread rests."])"""
    return (
        f"## Use\n\n```python\n{own}\n```\n\n```python\n{texts}\n```\n\n"
        "`ranker_contract.json` says how pairs are framed, cut and scored, and holds "
        "golden scores. `python -m ranker.check FOLDER` tells whether a copy, or a "
        "server, still gives them."
    )


def _loading_words() -> str:
    return (
        "## Use\n\nA language model after continued pre-training; "
        "`transformers.AutoModelForCausalLM.from_pretrained` loads it."
    )


def _data(report: dict[str, Any]) -> str:
    rows = [
        f"| {split} | {found.get('queries', 0):,} | {found.get('candidates', 0):,} |"
        for split, found in report.get("splits", {}).items()
        if isinstance(found, dict)
    ]
    if not rows:
        return ""
    table = "\n".join(["| split | queries | candidates |", "|---|---|---|", *rows])
    return f"## Data\n\n{report.get('documents', 0):,} documents.\n\n{table}"


def _measured(workdir: pathlib.Path, name: str) -> str:
    path = workdir / "summary.json"
    if not path.is_file():
        return ""
    summary = json.loads(path.read_text())
    systems = summary.get("systems", {})
    if name not in systems:
        return ""
    measures = systems[name]["metrics"]
    rows = [
        f"| {system} | "
        + " | ".join(_number(found["metrics"].get(one)) for one in measures)
        + " |"
        for system, found in systems.items()
    ]
    head = f"| system | {' | '.join(measures)} |"
    table = "\n".join([head, "|---" * (len(measures) + 1) + "|", *rows])
    return f"## Measured\n\nOn the {summary.get('split', 'test')} queries.\n\n{table}"


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else "-"
