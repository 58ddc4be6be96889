"""Settings of the data, of how text is read, and of the mesh."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from ranker.config.checks import not_negative, positive, require
from ranker.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How many devices lie along each axis of the mesh."""

    slices: int = -1  # TPU slices; batches are split over them; -1: as many as are here
    data: int = -1  # devices; batches are split over it; -1: all that the others leave
    fsdp: int = 1  # devices; batches, parameters and optimiser state are split over it
    tensor: int = 1  # devices; heads, MLP width and vocabulary are split over it

    def __post_init__(self):
        require(
            self.data == -1 or self.data > 0,
            f"mesh.data must be -1 (all devices left) or above 0, found {self.data}",
        )
        require(
            self.slices == -1 or self.slices > 0,
            f"mesh.slices must be -1 (all that are here) or above 0, found "
            f"{self.slices}",
        )
        positive(self, "fsdp", "tensor")


# --- data -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class World:
    """The synthetic search collection: a deterministic function of (seed, index)."""

    seed: int = 0  # every document, query and click follows from it
    num_topics: int = 64  # topics; each has its own words for titles and for queries
    num_aspects: int = 12  # aspects a document or a query can be about
    documents_per_topic: int = 32  # documents
    labelled_queries: int = 300  # queries with grades, for supervised fine-tuning
    unlabelled_queries: int = 4000  # queries without grades, for the teacher to score
    dev_queries: int = 200  # queries with grades, for choosing settings
    test_queries: int = 600  # queries with grades, held out
    clicks: int = 30000  # rows of the click log
    candidates: int = 12  # documents a query

    def __post_init__(self):
        positive(
            self,
            "num_topics",
            "num_aspects",
            "documents_per_topic",
            "labelled_queries",
            "test_queries",
            "candidates",
        )


@dataclass(frozen=True, kw_only=True)
class ClickRules:
    """Which rows of a click log become continued pre-training examples."""

    min_dwell: float = 10.0  # seconds; clicks known to be shorter are dropped
    # what a row counts: its clicks, or each as often as its dwell holds min_dwell
    count_by: Literal["clicks", "dwell"] = "clicks"
    max_per_query: int = 20  # documents; the most clicked of a query are kept
    dev_fraction: float = 0.02  # of the queries; held out to watch the loss

    def __post_init__(self):
        positive(self, "max_per_query")
        require(
            self.count_by == "clicks" or self.min_dwell > 0,
            f"clicks.count_by is 'dwell', which counts in units of min_dwell, and that "
            f"is {self.min_dwell:g}; set it above 0",
        )
        require(
            0 <= self.dev_fraction < 1,
            f"clicks.dev_fraction must be in [0, 1), found {self.dev_fraction}",
        )


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """Which documents that nobody judged stand in the lists of train as negatives."""

    first: int = 0  # candidates of the highest ranks that are left out
    last: int = 0  # rank of the last candidate that is taken; 0: all
    random: int = 0  # documents of the corpus, drawn for each query
    # patterns of further run files of train, below data.path, or bm25; their documents
    # of the ranks asked for join those of the first stage
    sources: tuple[str, ...] = ()
    each: int = 0  # documents taken of each further source for a query; 0: all

    def __post_init__(self):
        for name in ("first", "last", "random", "each"):
            value = getattr(self, name)
            require(value >= 0, f"data.negatives.{name} must be 0 or more, is {value}")
        require(
            not self.last or self.last > self.first,
            f"data.negatives takes the ranks after {self.first} up to {self.last}, "
            "which are none; raise data.negatives.last, or set it to 0",
        )
        require(
            not self.each or bool(self.sources),
            f"data.negatives.each is {self.each}, and data.negatives.sources names "
            "none; name run files, such as runs/dense.train.*, or bm25",
        )


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What becomes of unjudged candidates that the teacher puts near the positives.

    One is suspected of being relevant where its score is above the best positive's
    less the margin. Lists without a positive are left unchanged.
    """

    # with suspects: leave them out of their list, or give them a grade
    action: Literal["none", "drop", "relabel"] = "none"
    margin: float = 0.0  # below the best positive; see unit
    # absolute: of the teacher's scores; relative: share of the distance between the
    # best positive and the lowest score of the list
    unit: Literal["absolute", "relative"] = "absolute"
    grade: int = 1  # of a suspect that is relabelled

    def __post_init__(self):
        require(
            self.margin >= 0 and (self.unit == "absolute" or self.margin < 1),
            f"judge.margin is {self.margin}; it must be 0 or more, and below 1 where "
            "judge.unit is relative",
        )
        positive(self, "grade")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where queries, documents, judgements, candidates and clicks come from."""

    # folder (BEIR, MS MARCO, Parquet), files of lists, irds:NAME; empty: the synthetic
    # collection
    path: str = ""
    # collection: corpus, queries, qrels; lists: queries with their documents
    format: Literal["auto", "collection", "lists", "irds"] = "auto"
    world: World = field(default_factory=World)
    test: str = "test"  # name of the split that is held out: qrels/NAME.tsv
    held_out: float = 0.1  # of files of lists: share of queries for dev and test each
    runs: str = "runs/*.{split}.*"  # run files below path; none: BM25
    candidates: int = 50  # documents a query, the first of the run
    negatives: Negatives = field(default_factory=Negatives)
    language: str = ""  # that BM25 stems by, as Snowball names it: english; empty: none
    # leave a document with the query's id out: auto, where its text is the same too
    ignore_identical_ids: Literal["auto", "always", "never"] = "auto"
    # teacher scores from outside: TREC runs, JSONL or Parquet; data: those in the lists
    given_scores: str = ""
    click_log: str = ""  # file, folder or pattern; empty: positives of train
    click_columns: tuple[str, ...] = ()  # OURS=THEIRS of the log, e.g. document_id=did
    click_rules: ClickRules = field(default_factory=ClickRules)
    labelled_queries: int = 0  # train queries whose grades may be used; 0: all
    max_queries: int = 0  # queries used of each split, for a short run; 0: all
    # at a malformed record that is not held out; skipped are counted
    on_error: Literal["stop", "skip"] = "stop"
    max_skipped: float = 0.01  # share of a file's records that may be skipped

    def __post_init__(self):
        positive(self, "candidates")
        for name, most in (("held_out", 0.5), ("max_skipped", 1.0)):
            value = getattr(self, name)
            require(
                0 <= value <= most,
                f"data.{name} must be in [0, {most:g}], found {value}",
            )
        for one in self.click_columns:
            ours, mark, theirs = one.partition("=")
            require(
                bool(ours and mark and theirs),
                f"data.click_columns has {one!r}; it takes OURS=THEIRS, such as "
                "document_id=did",
            )


Role = Literal["teacher", "student"]
TEMPLATES = (
    "prompt",
    "pair",
    "grades",
    "qwen3_reranker",
    "bge_reranker_gemma",
    "mxbai_rerank_v2",
    "zerank_2",
    "rankllama",
)
TEMPLATE_BAR = "|||"  # between the parts of a template that is written out
Template = str  # one of TEMPLATES, or "QUERY ||| DOCUMENT ||| END"; see data/text.py


PassageScore = Literal["first", "max", "mean"]


@dataclass(frozen=True, kw_only=True)
class Passages:
    """How a document that is longer than a row is read."""

    most: int = 1  # parts of a document, each read with the query; the rest is cut
    overlap: int = 0  # tokens that a part shares with the one before
    score: PassageScore = "first"  # of the parts' scores; first: of one part alone

    def __post_init__(self):
        require(self.most >= 1, f"passages must be 1 or more, found {self.most}")
        not_negative(self, "overlap")
        require(
            (self.most > 1) == (self.score != "first"),
            f"passages are {self.most} a document at most, and their score is "
            f"{self.score!r}; several have max or mean (text.passage_score), one first",
        )
        require(
            self.most > 1 or not self.overlap,
            f"passages overlap by {self.overlap} tokens, and there is one a document",
        )


ONE_PASSAGE = Passages()


@dataclass(frozen=True, kw_only=True)
class Text:
    """How teacher and student read text; they never share a vocabulary."""

    teacher_tokenizer: str = ""  # Hugging Face folder or hub name; empty: trained
    student_tokenizer: str = ""  # Hugging Face folder or hub name; empty: trained
    teacher_template: Template = "prompt"  # pair for an encoder; see data/text.py
    student_template: Template = "pair"  # words around query and document
    teacher_vocab_size: int = 2048  # tokens, of a tokenizer that prepare trains
    student_vocab_size: int = 2048  # tokens, of a tokenizer that prepare trains
    teacher_length: int = 64  # tokens a row, the end token included
    student_length: int = 64  # tokens a row, the special tokens included
    teacher_passages: int = 1  # rows that a document is read in, at most
    student_passages: int = 1  # rows that a document is read in, at most
    passage_overlap: int = 0  # tokens that a row repeats of the one before
    passage_score: PassageScore = "first"  # a document's, of its rows'; first: one row

    def __post_init__(self):
        for name in ("teacher_length", "student_length"):
            require(
                getattr(self, name) >= 8,
                f"text.{name} must be at least 8 tokens, found {getattr(self, name)}",
            )
        for name in ("teacher_template", "student_template"):
            _check_template(f"text.{name}", getattr(self, name))
        most = max(self.teacher_passages, self.student_passages)
        Passages(most=most, overlap=self.passage_overlap, score=self.passage_score)
        for role in ("teacher", "student"):
            require(
                getattr(self, f"{role}_passages") >= 1,
                f"text.{role}_passages must be 1 or more, found "
                f"{getattr(self, f'{role}_passages')}",
            )

    def of(self, role: Role, name: str) -> Any:
        """The field `name` of the teacher or the student, such as "length"."""
        return getattr(self, f"{role}_{name}")

    def passages(self, role: Role) -> Passages:
        """How the teacher or the student reads a long document."""
        most = self.of(role, "passages")
        if most == 1:
            return Passages()
        return Passages(
            most=most, overlap=self.passage_overlap, score=self.passage_score
        )

    def with_one_reader(self, role: Role) -> "Text":
        """The settings where one of the two reads alone: both have its fields."""
        mine, other = f"{role}_", "student_" if role == "teacher" else "teacher_"
        fields = [one.name for one in dataclasses.fields(self)]
        alike = {
            other + name.removeprefix(mine): getattr(self, name)
            for name in fields
            if name.startswith(mine)
        }
        return dataclasses.replace(self, **alike)


def _check_template(name: str, template: str) -> None:
    if template in TEMPLATES:
        return
    parts = template.split(TEMPLATE_BAR)
    require(
        len(parts) == 3,
        f"{name} is {template!r}; it takes {', '.join(TEMPLATES)}, or words of "
        f"your own as 'QUERY {TEMPLATE_BAR} DOCUMENT {TEMPLATE_BAR} END', such as "
        f"'query: {{query}} {TEMPLATE_BAR}document: {{title}} {{text}}{TEMPLATE_BAR}'",
    )
    empty = {"query": {"query": ""}, "document": dict(title="", text="", both="")}
    for part, (place, fields) in zip(parts, empty.items(), strict=False):
        names = " or ".join(f"{{{field}}}" for field in fields)
        try:
            changed = part.format(**fields) != part
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(
                f"{name}: its {place} {part!r} may hold {names} in braces, and no "
                f"others ({error!r})"
            ) from error
        require(changed, f"{name}: its {place} {part!r} must hold {names}")
