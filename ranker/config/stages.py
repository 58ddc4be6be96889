"""Settings of each stage."""

from dataclasses import dataclass, field
from typing import Literal

from ranker.config.checks import positive, require
from ranker.config.data import Data, Judge, Mesh, Text
from ranker.config.models import DType, Encoder, Model, Pretrained
from ranker.config.training import (
    DEV_LANGUAGE,
    NO_LORA,
    Batch,
    Distillation,
    Language,
    Loop,
    Lora,
    ObjectiveSettings,
    Optim,
    Rank,
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What every stage needs: data, text, devices."""

    data: Data = field(default_factory=Data)
    text: Text = field(default_factory=Text)
    mesh: Mesh = field(default_factory=Mesh)


@dataclass(frozen=True, kw_only=True)
class Train(Stage):
    """One training stage; `objective` and `model` say which."""

    name: str  # folder of this stage in the workdir
    parent: str = ""  # stage folder that the weights come from; empty: fresh weights
    model: Model
    objective: ObjectiveSettings
    # whose tokenizer and template; auto: decoders are teachers
    role: Literal["auto", "teacher", "student"] = "auto"
    scores: str = ""  # folder of teacher scores in the workdir (distillation)
    # lists with labels from clicks (ranker.online impressions), of a rank objective
    click_lists: str = ""
    judged_lists: bool = True  # learn from the judged lists too, or from clicks alone
    # stage whose lists a rank objective learns from in place of those prepared: of
    # config.Judging, where a teacher has looked at what nobody judged
    negatives: str = ""
    lora: Lora = NO_LORA
    optim: Optim
    batch: Batch
    loop: Loop
    seed: int = 0  # of initial weights, data order and dropout

    def __post_init__(self):
        objective = self.objective
        triples = isinstance(objective, Distillation) and bool(objective.triples)
        distils = isinstance(objective, Distillation) and not triples
        require(
            distils == bool(self.scores),
            f"stage {self.name!r}: scores is {self.scores!r}; a distillation needs the "
            "folder of teacher scores there, or objective.triples, and no other stage "
            "reads one",
        )
        require(
            not triples or self.batch.list_size == 1,
            f"stage {self.name!r}: objective.triples are pairs of their own; set "
            f"batch.list_size=1 ({self.batch.list_size})",
        )
        if not isinstance(objective, Language):
            require(
                self.batch.list_size > 1 or not objective.comparing,
                f"stage {self.name!r}: batch.list_size is 1, and "
                f"{', '.join(objective.comparing)} compares documents; set it to 2 or "
                "more, or take a point-wise loss",
            )
        self._check_lists()
        if isinstance(self.objective, Language):
            require(
                not isinstance(self.model, Encoder),
                f"stage {self.name!r}: the language objective needs a decoder, found "
                "an encoder",
            )
        require(
            not self.lora.rank
            or bool(self.parent)
            or isinstance(self.model, Pretrained),
            f"stage {self.name!r}: lora.rank is {self.lora.rank}, but there are no "
            "weights to adapt; name a parent or a checkpoint (model.path), or set "
            "lora.rank to 0",
        )
        require(
            self.loop.steps <= 0 or self.optim.warmup <= self.loop.steps,
            f"optim.warmup {self.optim.warmup} is over loop.steps {self.loop.steps}",
        )
        language = isinstance(self.objective, Language)
        measured = DEV_LANGUAGE if language else "rankings (dev_ndcg@5)"
        require(
            self.loop.best_metric == "none"
            or (self.loop.best_metric == DEV_LANGUAGE) == language,
            f"stage {self.name!r} measures {measured} on dev, and loop.best_metric is "
            f"{self.loop.best_metric!r}",
        )

    def _check_lists(self) -> None:
        """Raises `ConfigError` for lists that the objective does not learn from."""
        require(
            not self.click_lists or isinstance(self.objective, Rank),
            f"stage {self.name!r}: click_lists is {self.click_lists!r}; only a rank "
            "objective (sft) learns from lists of clicks",
        )
        require(
            bool(self.click_lists)
            or not isinstance(self.objective, Rank)
            or not self.objective.position_bias,
            f"stage {self.name!r}: objective.position_bias is learned from lists of "
            "clicks, and click_lists is empty; name a file of lists",
        )
        require(
            not self.negatives
            or isinstance(self.objective, Rank)
            and self.judged_lists,
            f"stage {self.name!r}: negatives is {self.negatives!r}; only a rank "
            "objective that learns from judged lists reads another stage's",
        )
        require(
            self.judged_lists or bool(self.click_lists),
            f"stage {self.name!r}: judged_lists is False and click_lists is empty: "
            "there is nothing to learn from; name a file of lists",
        )


ScoreFormat = Literal["parquet", "array_record"]


@dataclass(frozen=True, kw_only=True)
class Score(Stage):
    """The teacher scores the candidates of many queries, or pairs of any input."""

    name: str = "scores"  # folder of the scores in the workdir; of an input: pairs
    teacher: str = "sft"  # stage that scores; OWNER/NAME, ./FOLDER: as it is
    dtype: DType = "float32"  # of the computation, of a checkpoint as it is
    # Whose candidates are scored.
    splits: tuple[Literal["train", "unlabelled"], ...] = ("train", "unlabelled")
    input: str = ""  # pairs to score in place of splits; see scoring/pair_files.py
    pairs: str = "runs/*"  # files below a BEIR folder (input) that list the pairs
    output: str = ""  # folder of the chunks, local or gs://; empty: that of the stage
    format: ScoreFormat = "parquet"  # of the chunks
    chunk_pairs: int = 32768  # pairs a chunk: what a killed process loses at most
    quarantine: int = 0  # bad pairs a chunk that are set aside; more stop the run
    rows: int = 128  # of the text length a batch, over all devices; CPU: 2,048 tokens
    # Whole teachers: one on each process's devices (local), or one on those of all.
    devices: Literal["local", "all"] = "local"
    process_index: int = -1  # of this process, from 0; -1: jax's
    process_count: int = 0  # processes that share the work; 0: jax's
    cache: str = ""  # local folder for texts of an input; empty: the system's

    def __post_init__(self):
        if self.input and self.name == Score.name:
            # A finished workdir has scores of its own splits under that name.
            object.__setattr__(self, "name", "pairs")
        positive(self, "rows", "chunk_pairs")
        require(
            self.quarantine >= 0,
            f"Score.quarantine must be 0 or more, found {self.quarantine}",
        )
        require(
            (self.process_index < 0) == (self.process_count < 1)
            and self.process_index < max(self.process_count, 1),
            f"Score.process_index is {self.process_index} and Score.process_count is "
            f"{self.process_count}; give both, the index from 0 to process_count - 1, "
            "or neither",
        )


@dataclass(frozen=True, kw_only=True)
class Cascade:
    """Two systems in turn: the first ranks all candidates, the second the best."""

    first: str  # cheap system
    second: str  # good one
    keep: int = 100  # candidates of a query that the second sees

    def __post_init__(self):
        positive(self, "keep")

    @property
    def name(self) -> str:
        """Name of the system in tables and of its run."""
        return f"{self.first}-{self.keep}-{self.second}"


@dataclass(frozen=True, kw_only=True)
class Given(Stage):
    """A teacher's scores that came from outside, in place of those of a stage."""

    name: str = "given"  # folder of the scores in the workdir
    chunk_pairs: int = 32768  # pairs a file

    def __post_init__(self):
        positive(self, "chunk_pairs")


@dataclass(frozen=True, kw_only=True)
class Judging(Stage):
    """The teacher judges the negatives: drops or relabels what may be relevant."""

    name: str = "judged"  # folder of the lists and their scores in the workdir
    scores: str = "scores"  # stage whose scores judge; their splits are judged
    judge: Judge
    chunk_pairs: int = 32768  # pairs a file

    def __post_init__(self):
        positive(self, "chunk_pairs")
        require(
            self.judge.action != "none",
            f"stage {self.name!r}: judge.action is none, so there is nothing to do; "
            "set it to drop or relabel",
        )


@dataclass(frozen=True, kw_only=True)
class Evaluate(Stage):
    """Measures systems on held-out queries, against each other and BM25."""

    systems: tuple[str, ...] = ("sft", "student_labels", "distill")  # stage folders
    reference: str = "distill"  # system that p-values compare the others with
    split: Literal["dev", "test"] = "test"  # queries
    # as in NDCG@10 or P(rel=2)@10; docs/evaluation.md has the table
    measures: tuple[str, ...] = ("NDCG@5", "NDCG@10", "MRR@10", "MAP", "PNR")
    relevance: int = 1  # lowest grade that counts as relevant (MRR, MAP)
    permutations: int = 10000  # of the randomisation test
    rows: int = 128  # of the text length a batch, over all devices; CPU: 2,048 tokens
    seed: int = 0  # of the randomisation test
    query_fields: str = ""  # TSV or JSON lines, a field of each query: slices by it
    cascades: tuple[Cascade, ...] = ()  # systems in turn, measured as one

    def __post_init__(self):
        positive(self, "permutations", "rows")
        unknown = [
            name
            for one in self.cascades
            for name in (one.first, one.second)
            if name not in (*self.systems, "bm25")
        ]
        require(
            not unknown,
            f"cascades name {', '.join(unknown)}, but the systems are {self.systems}",
        )
        require(
            self.reference in (*self.systems, "bm25"),
            f"reference {self.reference!r} is none of the systems "
            f"{(*self.systems, 'bm25')}",
        )


@dataclass(frozen=True, kw_only=True)
class Onnx:
    """ONNX files beside an encoder's weights; fewer bits where ranking allows it."""

    # int8 tries bfloat16 and 8 bits, and keeps what is fast and not inferior.
    precision: Literal["none", "float32", "bfloat16", "int8"] = "float32"
    measure: str = "NDCG@10"  # of dev queries, that fewer bits are accepted by
    margin: float = 0.005  # of the measure: a mean loss that must be ruled out

    def __post_init__(self):
        positive(self, "margin")


@dataclass(frozen=True, kw_only=True)
class Export(Stage):
    """Writes a trained model as a Hugging Face folder."""

    stage: str = "distill"  # stage folder
    folder: str = "export"  # in the workdir
    dtype: DType = "float32"  # of the weights in the file; bfloat16 halves it
    onnx: Onnx = field(default_factory=Onnx)
    # Raw scores to probabilities, fitted on dev: two numbers, or any rising curve.
    calibration: Literal["none", "platt", "isotonic"] = "platt"
