"""Settings of the whole method, and the stages that follow from them."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from ranker.config.checks import require
from ranker.config.data import Data, Judge, Mesh, Text
from ranker.config.models import Model, Pretrained
from ranker.config.stages import (
    Cascade,
    Evaluate,
    Export,
    Given,
    Judging,
    Score,
    Stage,
    Train,
)
from ranker.config.training import (
    NO_LORA,
    Batch,
    Distillation,
    Language,
    Loop,
    Lora,
    Optim,
    Rank,
    RankLoss,
)

Variant = Literal[
    "sft_without_cpt",
    "sft_pointwise",
    "sft_pairwise",
    "sft_listwise",
    "student_labels",
    "student_point",
    "student_margin",
    "student_kl",
]

# Rank loss of each family of teachers that `Pipeline.compare` can add.
_FAMILIES: dict[str, tuple[RankLoss, ...]] = {
    "sft_pointwise": ("sigmoid_cross_entropy",),
    "sft_pairwise": ("ranknet",),
    "sft_listwise": ("softmax",),
}
# What is left of the distillation loss in each student that it can add.
_TERMS: dict[str, dict[str, Any]] = {
    "student_point": dict(alpha=1.0, beta=0.0, loss=()),
    "student_margin": dict(alpha=0.0, beta=1.0, loss=()),
    "student_kl": dict(alpha=0.0, beta=0.0, loss=("listwise_kl",)),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one stage of a pipeline trains."""

    optim: Optim
    batch: Batch
    loop: Loop
    lora: Lora = NO_LORA


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The whole method: prepare, cpt, sft, score, distill, evaluate, export.

    `compare` adds systems to the table: the teacher without continued pre-training or
    with a loss of another family, and students trained on the labels alone, with one
    term of the distillation loss, or with the listwise KL divergence in its place. Each
    differs from the main line in what its name says and in nothing else.
    """

    data: Data = field(default_factory=Data)
    text: Text = field(default_factory=Text)
    mesh: Mesh = field(default_factory=Mesh)
    teacher: Model | None = None  # none with given_scores
    student: Model
    first_student: Model | None = None  # a cheaper one, before it in a cascade
    keep: int = 100  # candidates that the first student leaves to the other
    cpt: Recipe | None = None  # as teacher
    sft: Recipe | None = None  # as teacher
    second_sft: Recipe | None = None  # on judged negatives; its teacher then scores
    distill: Recipe
    labels: Recipe  # of the student that is trained on the labels alone
    language: Language = field(default_factory=Language)  # of cpt
    rank: Rank = field(default_factory=Rank)
    click_lists: str = ""  # of sft and the students of labels; see Train
    judged_lists: bool = True  # sft learns from the judged lists too
    judge: Judge = field(default_factory=Judge)  # between score and distill
    distillation: Distillation = field(default_factory=Distillation)
    # teacher scores from outside, in place of cpt, sft and score; see data.given_scores
    given_scores: str = ""
    compare: tuple[Variant, ...] = ("student_labels",)
    measures: tuple[str, ...] = Evaluate.measures  # of the table
    query_fields: str = Evaluate.query_fields  # TSV or JSON lines: slices by them
    relevance: int = 1  # lowest grade that counts as relevant (MRR, MAP)
    rows: int = 128  # rows of the text length a batch, when scoring
    seed: int = 0  # of every stage

    @property
    def reading(self) -> Text:
        """`text`, with the tokenizers of pretrained models where none is named.

        Where scores are given, no teacher reads: its settings are the student's.
        """
        text, given = self.text, {}
        for role, model in (("teacher", self.teacher), ("student", self.student)):
            name = f"{role}_tokenizer"
            if isinstance(model, Pretrained) and not getattr(text, name):
                given[name] = model.path
        text = dataclasses.replace(text, **given)
        return text.with_one_reader("student") if self.given_scores else text

    def __post_init__(self):
        given = self.given_scores or self.data.given_scores
        require(
            self.second_sft is None or (self.judge.action != "none" and not given),
            "second_sft learns from negatives that the first teacher has judged; set "
            "judge.action to drop or relabel, and leave given_scores empty",
        )
        if given != self.given_scores:
            object.__setattr__(self, "given_scores", given)
        if given != self.data.given_scores:
            data = dataclasses.replace(self.data, given_scores=given)
            object.__setattr__(self, "data", data)
        missing = [n for n in ("teacher", "cpt", "sft") if getattr(self, n) is None]
        require(
            bool(given) or not missing,
            f"{', '.join(missing)}: none; a teacher is trained and scores, unless its "
            "scores come from outside (--config.given_scores=FILE)",
        )
        require(
            not given or bool(self.data.path),
            f"given_scores is {given!r}, but the synthetic collection has no scores "
            "from outside; name the collection with --config.data.path=FOLDER",
        )

    @property
    def _sources(self) -> dict[str, Any]:
        """What a stage with a rank objective learns from."""
        return dict(click_lists=self.click_lists, judged_lists=self.judged_lists)

    @property
    def _shared(self) -> dict[str, Any]:
        """What every stage has."""
        return dict(data=self.data, text=self.reading, mesh=self.mesh)

    def _train(self, name: str, recipe: Recipe, **fields: Any) -> Train:
        return Train(
            **self._shared,
            name=name,
            optim=recipe.optim,
            batch=recipe.batch,
            loop=recipe.loop,
            lora=recipe.lora,
            seed=self.seed,
            **fields,
        )

    def _add_teacher(self, stages: dict[str, Stage]) -> None:
        """Adds the stages that train the teacher, and those it is compared with."""
        teacher: dict[str, Any] = dict(model=self.teacher, role="teacher")
        assert self.cpt and self.sft, "they are none only where scores are given"
        if self.cpt.loop.steps:
            stages["cpt"] = self._train(
                "cpt", self.cpt, objective=self.language, **teacher
            )
        parent = "".join(stages)
        ranks = dict(teacher, objective=self.rank, **self._sources)
        stages["sft"] = self._train("sft", self.sft, parent=parent, **ranks)
        if "sft_without_cpt" in self.compare:
            stages["sft_without_cpt"] = self._train(
                "sft_without_cpt", self.sft, **ranks
            )
        for name, loss in _FAMILIES.items():
            if name in self.compare:
                rank = dataclasses.replace(self.rank, loss=loss, loss_weights=())
                fields = dict(ranks, objective=rank)
                stages[name] = self._train(name, self.sft, parent=parent, **fields)

    def _add_scores(self, stages: dict[str, Stage]) -> str:
        """Adds the stages that score and judge; returns what is distilled from."""
        shared = self._shared
        name = "given" if self.given_scores else "scores"
        if self.given_scores:
            stages[name] = Given(**shared)
        else:
            self._add_teacher(stages)
            stages[name] = Score(**shared, rows=self.rows)
        if self.judge.action != "none":
            stages["judged"] = Judging(**shared, scores=name, judge=self.judge)
            name = "judged"
        if self.second_sft is not None:
            stages["sft_second"] = self._train(
                "sft_second",
                self.second_sft,
                model=self.teacher,
                role="teacher",
                parent="sft",
                objective=self.rank,
                negatives="judged",
            )
            again: dict[str, Any] = dict(name="scores_second", teacher="sft_second")
            stages["scores_second"] = Score(**shared, rows=self.rows, **again)
            name = "judged_second"
            stages[name] = Judging(
                **shared, name=name, scores="scores_second", judge=self.judge
            )
        return name

    def _add_students(self, stages: dict[str, Stage], scores: str) -> None:
        """Adds the student distilled from `scores`, and those it is compared with."""
        student: dict[str, Any] = dict(model=self.student, role="student")
        if "student_labels" in self.compare:
            stages["student_labels"] = self._train(
                "student_labels",
                self.labels,
                objective=self.rank,
                **student,
                **self._sources,
            )
        student["scores"] = scores
        student["objective"] = self.distillation
        for name, term in _TERMS.items():
            if name in self.compare:
                term = dict(term, loss_weights=())
                objective = dataclasses.replace(self.distillation, **term)
                fields = dict(student, objective=objective)
                stages[name] = self._train(name, self.distill, **fields)
        stages["distill"] = self._train("distill", self.distill, **student)
        if self.first_student is not None:
            first = dict(student, model=self.first_student)
            stages["distill_first"] = self._train(
                "distill_first", self.distill, **first
            )

    def _evaluate(self, stages: dict[str, Stage]) -> Evaluate:
        """The stage that measures all those that score."""
        systems = [
            name
            for name, stage in stages.items()
            if isinstance(stage, Train) and not isinstance(stage.objective, Language)
        ]
        cascade = Cascade(first="distill_first", second="distill", keep=self.keep)
        return Evaluate(
            **self._shared,
            systems=tuple(systems),
            measures=self.measures,
            query_fields=self.query_fields,
            cascades=() if self.first_student is None else (cascade,),
            relevance=self.relevance,
            rows=self.rows,
            seed=self.seed,
        )

    def stages(self) -> dict[str, Stage]:
        """Every stage in the order it runs; without cpt where that has no steps."""
        stages: dict[str, Stage] = {}
        self._add_students(stages, self._add_scores(stages))
        stages["evaluate"] = self._evaluate(stages)
        stages["export"] = Export(**self._shared)
        if self.first_student is not None:
            stages["export_first"] = Export(
                **self._shared, stage="distill_first", folder="export_first"
            )
        return stages
