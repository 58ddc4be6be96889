"""The parts of the evidence in the order that they run: what each makes and costs."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable

import numpy as np
import pipelines
import students
import untrained
from setting import Run
from sizes import Sizes


@dataclasses.dataclass(frozen=True)
class Part:
    """One question's run."""

    name: str
    says: str
    run: Callable[[Run], None]
    files: Callable[[Sizes], list[str]]  # below OUT; the part is done when all exist
    needs: tuple[str, ...]  # flags that name its data and models
    hours: float  # of two cores at size "cpu", estimated from measured rates


def _groups(folder: str, count: int, at_once: int) -> list[str]:
    return [f"{folder}/{number:03d}.npz" for number in range(-(-count // at_once))]


def _e1(name: str) -> Callable[[Sizes], list[str]]:
    def files(sizes: Sizes) -> list[str]:
        grid = sizes.synthetic if name == "synthetic" else sizes.nqqed
        arms = len(grid.arms)
        rates = _groups(f"e1-{name}-rates", arms * len(grid.rates), grid.at_once)
        return [*rates, *_groups(f"e1-{name}", arms * grid.seeds, grid.at_once)]

    return files


def _e0(name: str) -> Callable[[Sizes], list[str]]:
    def files(sizes: Sizes) -> list[str]:
        grid = sizes.nqqed
        rates, few, most = len(grid.rates), grid.trials, grid.at_once
        folders = {
            "layers": [(f"e0-layers-{n}", rates * few) for n, _ in sizes.layers],
            "pairs": [(f"e0-pairs-{n}", few) for n in (1, 2, 4)],
            "warm": [(f"e0-warm-{n}", few) for n in (2, 3)],
            "temper": [("e0-temper", 6 * few)],
        }[name]
        return [one for at, n in folders for one in _groups(at, n, most)]

    return files


def _e2(name: str, data: str) -> Callable[[Sizes], list[str]]:
    def files(sizes: Sizes) -> list[str]:
        size = sizes.smollm if name == "smollm" else sizes.scratch
        each = [(arm, seed) for seed in range(size.seeds) for arm in pipelines.ARMS]
        return [f"e2-{name}-{data}/{arm}-{seed}/seconds" for arm, seed in each]

    return files


def _e3(sizes: Sizes) -> list[str]:
    # All labelled lists are a size too, and the largest that fit.
    kinds = len(sizes.label_sizes) + 1
    return _groups("e3", kinds * sizes.nqqed.few_seeds, sizes.nqqed.at_once)


def _e5(sizes: Sizes) -> list[str]:
    return [f"e5/parity-{seed}.json" for seed in range(sizes.parity_seeds)]


_BERT = ("data", "minilm")
_LLM = ("data", "smollm")
PARTS = (
    Part(
        "e1-synthetic",
        "which loss, on the synthetic collection",
        students.e1_synthetic,
        _e1("synthetic"),
        (),
        0.6,
    ),
    Part("e5", "parity with sentence-transformers", pipelines.parity, _e5, _BERT, 0.9),
    Part(
        "e4-cosine",
        "untrained MiniLM, the trivial baseline",
        untrained.cosine_part,
        lambda sizes: _groups("e4-cosine", sizes.nqqed.test, untrained.CHUNK),
        _BERT,
        0.1,
    ),
    Part(
        "e4-likelihood",
        "untrained SmolLM2, by the query's likelihood",
        untrained.likelihood_part,
        lambda sizes: _groups("e4-likelihood", sizes.queries, untrained.CHUNK),
        _LLM,
        0.2,
    ),
    Part(
        "e4-yes_no",
        "untrained SmolLM2, asked yes or no",
        pipelines.yes_no,
        lambda sizes: ["e4-yes_no/seconds"],
        _LLM,
        0.2,
    ),
    Part(
        "e1-cosine",
        "which loss, MiniLM's cosine as the teacher",
        functools.partial(students.e1, teacher="cosine"),
        _e1("cosine"),
        _BERT,
        5.3,
    ),
    Part("e3", "labels or a teacher", students.e3, _e3, _BERT, 2.8),
    Part(
        "e2-scratch-medquad",
        "clicks for a decoder from scratch",
        functools.partial(pipelines.pretrain, data="medquad", name="scratch"),
        _e2("scratch", "medquad"),
        ("medquad",),
        1.5,
    ),
    Part(
        "e2-smollm-nqqed",
        "clicks for SmolLM2, people's questions",
        functools.partial(pipelines.pretrain, data="nqqed", name="smollm"),
        _e2("smollm", "nqqed"),
        _LLM,
        3.6,
    ),
    Part(
        "e2-smollm-medquad",
        "clicks for SmolLM2, templated questions",
        functools.partial(pipelines.pretrain, data="medquad", name="smollm"),
        _e2("smollm", "medquad"),
        ("medquad", "smollm"),
        3.6,
    ),
    Part(
        "e1-smollm",
        "which loss, fine-tuned SmolLM2 as the teacher",
        functools.partial(students.e1, teacher="smollm"),
        _e1("smollm"),
        (*_BERT, "smollm"),
        6.7,
    ),
    Part("e0-layers", "how shallow", students.e0_layers, _e0("layers"), _BERT, 1.7),
    Part("e0-pairs", "more pairs", students.e0_pairs, _e0("pairs"), _BERT, 1.2),
    Part("e0-warm", "a warm start", students.e0_warm, _e0("warm"), _BERT, 0.3),
    Part("e0-temper", "what temper", students.e0_temper, _e0("temper"), _BERT, 1.4),
    Part(
        "e1-minilm",
        "which loss, fine-tuned MiniLM as the teacher",
        functools.partial(students.e1, teacher="minilm"),
        _e1("minilm"),
        _BERT,
        5.3,
    ),
)


def seconds(path: pathlib.Path) -> float:
    """What a file of a part took, where it says so."""
    if path.suffix == ".npz":
        return float(np.load(path)["seconds"])
    found = json.loads(path.read_text())
    if "families" in found:
        return sum(sum(one["seconds"].values()) for one in found["families"].values())
    return float(found["seconds"])


def status(out: pathlib.Path, sizes: Sizes) -> list[list[str]]:
    """A row a part: name, state, files done, minutes spent, hours at size cpu."""
    rows = []
    for part in PARTS:
        files = [out / name for name in part.files(sizes)]
        there = [one for one in files if one.exists()]
        state = "done" if len(there) == len(files) else "begun" if there else "missing"
        spent = sum(map(seconds, there)) / 60
        count = f"{len(there)}/{len(files)}"
        rows.append(
            [part.name, state, count, f"{spent:.1f}", f"{part.hours:g}", part.says]
        )
    return rows
