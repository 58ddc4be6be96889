"""Why a folder scores otherwise than its contract says: a table of what goes wrong.

A cause is not guessed from files. Each fault of the table is done to the golden pairs,
and the first that gives the scores that were found is named. Faults stand in the order
in which they are tried: the more particular first.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ranker import config
from ranker.data.records import Document
from ranker.data.text import TEMPLATES, document_text
from ranker.errors import DataError
from ranker.models.huggingface import open_checkpoint
from ranker.serving import contract
from ranker.serving.contract import Contract, Golden
from ranker.serving.readers import (
    GoldenScores,
    ModelInput,
    Reader,
    Stock,
    cut_length,
    positions,
    stock_tokenizer,
    template_rows,
    uncut,
)

GoldenTexts = tuple[str, Document]
PairTokens = tuple[
    list[int], list[int]
]  # ids of both texts, whole, without special tokens

_SAME_SIZE = 4  # times the error of half precision: what is still called by its name


@dataclass(frozen=True)
class Cause:
    """Why scores differ."""

    name: str
    sentence: str


@dataclass(frozen=True)
class FaultTrial:
    """What faults are tried on."""

    reader: Reader
    promise: Contract

    @property
    def given(self) -> list[ModelInput]:
        """Rows of the contract's own tokens."""
        return [
            ModelInput(one.tokens, _types(self.promise, one))
            for one in self.promise.golden
        ]

    @property
    def texts(self) -> list[GoldenTexts]:
        """The golden pairs."""
        return [(g.query, Document("", g.title, g.text)) for g in self.promise.golden]

    @cached_property
    def backend(self) -> Any:
        """The folder's tokenizer."""
        found = stock_tokenizer(self.reader.folder).backend_tokenizer
        found.no_truncation()
        return found

    @cached_property
    def template(self) -> str:
        """The template whose texts have the golden tokens; empty: none has.

        That of the contract, unless the contract was edited.
        """
        named = self.promise.template
        for template in sorted([*TEMPLATES, "pair"], key=lambda name: name != named):
            if _agree(self.promise, self.parts(template=template)):
                return template
        return ""

    def parts(
        self, texts: Sequence[GoldenTexts] = (), template: str = ""
    ) -> list[PairTokens]:
        """Ids of the golden texts, or of others, in the template found, or another."""
        name: Any = template or self.template
        words = TEMPLATES.get(name)
        pairs = [
            (
                words.query.format(query=query) if words else query,
                document_text(document, name),
            )
            for query, document in (texts or self.texts)
        ]
        encode = self.backend.encode_batch
        firsts, seconds = (
            [one.ids for one in encode(list(side), add_special_tokens=False)]
            for side in zip(*pairs, strict=True)
        )
        return list(zip(firsts, seconds, strict=True))

    def framed(self, parts: Sequence[PairTokens] = (), **how: Any) -> list[ModelInput]:
        """Both texts within the special tokens, see `_frame`."""
        return [_frame(self.promise, one, **how) for one in parts or self.parts()]

    def edited(self, edit: Callable[[str, Document], GoldenTexts]) -> list[ModelInput]:
        """Rows of other texts."""
        return self.framed(self.parts([edit(q, d) for q, d in self.texts]))

    def other_template(self, template: str) -> list[ModelInput]:
        """Rows in another template, with its special tokens."""
        if template == self.template:
            raise DataError("it is this template")
        return template_rows(self.reader.folder, self.promise, template)

    def other_words(self, template: str) -> list[ModelInput]:
        """Rows with another template's words, within these special tokens."""
        if template == self.template:
            raise DataError("it is this template")
        return self.framed(self.parts(template=template))

    @property
    def words(self) -> dict[str, Any]:
        """What sentences name."""
        promise = self.promise

        def spelled(ids: list[int]) -> list[str]:
            return [promise.special_tokens.get(str(token), "") for token in ids]

        behind = spelled(promise.suffix)
        return {
            "behind": " ".join(behind),
            "last": behind[-1] if behind else "",
            "before": " ".join(spelled(promise.prefix)),
            "length": promise.length,
            "cut": cut_length(self.reader.folder),
            "padding": promise.padding,
            "use": self._use(),
        }

    def _use(self) -> str:
        promise, template = self.promise, self.template
        if template != promise.template:
            return (
                f"the golden tokens are in the template {template!r}, but the contract "
                f"names {promise.template!r}: it was edited"
            )
        return (
            f"the contract's template is {template!r}: its query is {promise.query!r} "
            f"and its document {promise.document!r}"
        )


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, and how it is done to the golden pairs."""

    name: str
    sentence: str  # with the fields of `Trial.words`
    rows: Callable[[FaultTrial], list[ModelInput]]
    texts: bool = False  # it needs the folder's tokenizer to give the golden tokens
    left: bool = False  # padded on the left; transformers alone can
    change: Callable[[Any], None] | None = None  # done to transformers' model
    pad: Callable[[FaultTrial], int] | None = (
        None  # padding token of transformers' model
    )

    def scores(self, trial: FaultTrial) -> GoldenScores | None:
        """Scores with the fault; None where this folder or reader cannot have it."""
        reader = trial.reader
        stock = isinstance(reader, Stock)
        if (self.left or self.change or self.pad) and not stock:
            return None
        if self.texts and not trial.template:
            return None
        try:
            rows = self.rows(trial)
            sizes = [len(row.tokens) for row in rows]
            if not min(sizes) or max(sizes) > positions(trial.promise):
                return None
            if isinstance(reader, Stock) and self.change:
                return reader.otherwise(rows, self.change)
            if isinstance(reader, Stock) and self.pad:
                return reader.scores(rows, pad=self.pad(trial))
            return reader.scores(rows, left=self.left)
        except (DataError, ValueError, IndexError, RuntimeError):
            return None  # so it is not what was done


def _cut(start: int, stop: int | None) -> Callable[[FaultTrial], list[ModelInput]]:
    return lambda t: [
        ModelInput(r.tokens[start:stop], r.types[start:stop]) for r in t.given
    ]


def _needs(part: str, rows: Callable[[FaultTrial], list[ModelInput]]) -> Callable:
    """Rows, where the contract has such a part at all."""

    def made(trial: FaultTrial) -> list[ModelInput]:
        if not getattr(trial.promise, part):
            raise DataError(f"there is no {part}")
        return rows(trial)

    return made


def _without_suffix(trial: FaultTrial) -> list[ModelInput]:
    return _cut(0, -len(trial.promise.suffix))(trial)


def _without_prefix(trial: FaultTrial) -> list[ModelInput]:
    return _cut(len(trial.promise.prefix), None)(trial)


def _twice(trial: FaultTrial) -> list[ModelInput]:
    end = trial.promise.suffix[-1]
    return [ModelInput([*r.tokens, end], [*r.types, r.types[-1]]) for r in trial.given]


def _whole(trial: FaultTrial) -> list[ModelInput]:
    return trial.framed(length=1 << 30)


def _cut_end(trial: FaultTrial) -> list[ModelInput]:
    n = trial.promise.length
    return [ModelInput(row.tokens[:n], row.types[:n]) for row in _whole(trial)]


def _cut_begin(trial: FaultTrial) -> list[ModelInput]:
    n = trial.promise.length
    return [ModelInput(row.tokens[-n:], row.types[-n:]) for row in _whole(trial)]


def _cut_left(trial: FaultTrial) -> list[ModelInput]:
    """The document's first tokens are cut in place of its last."""
    promise = trial.promise
    around = len(promise.prefix) + len(promise.middle) + len(promise.suffix)
    parts = []
    for first, second in trial.parts():
        room = promise.length - around - len(first)
        parts.append((first, second[max(len(second) - room, 0) :]))
    return trial.framed(parts)


def _cut_longer(trial: FaultTrial) -> list[ModelInput]:
    return trial.framed([_longest_first(trial.promise, one) for one in trial.parts()])


def _cut_elsewhere(trial: FaultTrial) -> list[ModelInput]:
    longest = cut_length(trial.reader.folder)
    if not longest or longest == trial.promise.length:
        raise DataError("it is cut to the contract's length")
    return trial.framed(length=longest)


def _masked(trial: FaultTrial) -> list[ModelInput]:
    return [replace(row, hidden=(trial.promise.padding,)) for row in trial.given]


def _end_masked(trial: FaultTrial) -> list[ModelInput]:
    return [replace(row, hidden=(trial.promise.suffix[-1],)) for row in trial.given]


def _swap_gelu(model: Any) -> None:
    """Every exact GELU of a model becomes the tanh form."""
    from transformers.activations import ACT2FN

    tanh: Any = ACT2FN["gelu_pytorch_tanh"]
    for module in list(model.modules()):
        for name, child in list(vars(module).items()) + list(module.named_children()):
            if type(child).__name__ in ("GELUActivation", "GELU"):
                setattr(module, name, tanh)


_END = "; the text must end with the contract's `suffix`"
_FIX = "set model_max_length in tokenizer_config.json to {length}"
_SIDE = "cut on the right (truncation_side in tokenizer_config.json, or the request)"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "end token",
        "what follows the document ('{behind}') is missing" + _END,
        _needs("suffix", _without_suffix),
    ),
    Fault(
        "end token",
        "the last token ('{last}') is missing" + _END,
        _needs("suffix", _cut(0, -1)),
    ),
    Fault(
        "end token",
        "the last token ('{last}') is there twice: the text ends with the contract's "
        "`suffix`, but the tokenizer appends another",
        _needs("suffix", _twice),
    ),
    Fault(
        "begin token",
        "what stands before the query ('{before}') is missing; the text must begin "
        "with the contract's `prefix`",
        _needs("prefix", _without_prefix),
    ),
    Fault(
        "padding side",
        "padding is on the left, and belongs on the right; set padding_side in "
        "tokenizer_config.json to right",
        lambda t: t.given,
        left=True,
    ),
    Fault(
        "token types",
        "all tokens have type 0, but the document's should have type 1; the tokenizer "
        "must give token_type_ids (model_input_names in tokenizer_config.json)",
        lambda t: [ModelInput(r.tokens, [0] * len(r.types)) for r in t.given],
    ),
    Fault(
        "padding token",
        "words that spell the padding token are taken for padding: the attention mask "
        "is made from ids that are not {padding}; make it from each text's length",
        _masked,
    ),
    Fault(
        "padding token",
        "the end token ('{last}') is taken for padding; pad with the id {padding}, and "
        "make the attention mask from each text's length",
        _needs("suffix", _end_masked),
    ),
    Fault(
        "padding token",
        "the end token ('{last}') pads, so the score is read one token early; set "
        "pad_token_id to {padding}",
        _needs("suffix", lambda t: t.given),
        pad=lambda t: t.promise.suffix[-1],
    ),
    Fault(
        "activation function",
        "GELU is computed by its tanh approximation, but the model was trained with "
        "the exact form; set hidden_act to gelu, or turn the approximation off",
        lambda t: t.given,
        change=_swap_gelu,
    ),
    Fault(
        "end token",
        "what follows the document ('{behind}') is missing" + _END,
        _needs("suffix", lambda t: t.framed(suffix=[])),
        texts=True,
    ),
    Fault(
        "begin token",
        "what stands before the query is missing; the text must begin with the "
        "contract's `prefix`",
        _needs("prefix", lambda t: t.framed(prefix=[])),
        texts=True,
    ),
    Fault(
        "truncation",
        "texts are not cut, but should be cut to {length} tokens; " + _FIX + ", and "
        "have the tokenizer truncate",
        lambda t: t.framed(length=uncut(t.promise)),
        texts=True,
    ),
    Fault(
        "truncation",
        "texts are cut to {cut} tokens, but should be cut to {length}; " + _FIX,
        _cut_elsewhere,
        texts=True,
    ),
    Fault(
        "truncation",
        "the document's first tokens are cut, and its last ones are to be; " + _SIDE,
        _cut_left,
        texts=True,
    ),
    Fault(
        "truncation",
        "the text is cut on the left, so the query is lost; " + _SIDE,
        _cut_begin,
        texts=True,
    ),
    Fault(
        "truncation",
        "the cut takes the special tokens at the end too; cut the document alone, and "
        "append the contract's `suffix`",
        _cut_end,
        texts=True,
    ),
    Fault(
        "truncation",
        "the longer of both texts is cut, and only the document may be; truncate with "
        "only_second",
        _cut_longer,
        texts=True,
    ),
    *(
        Fault(
            "template",
            f"texts are in the template {name!r}; {{use}}",
            lambda t, name=name: t.other_template(name),
            texts=True,
        )
        for name in (*TEMPLATES, "pair")
    ),
    *(
        Fault(
            "template",
            (
                f"words are those of {name!r}"
                if name != "pair"
                else "texts come without the template's words"
            )
            + "; {use}",
            lambda t, name=name: t.other_words(name),
            texts=True,
        )
        # Bare texts first: a template without words of its own (zerank_2) has them too.
        for name in ("pair", *TEMPLATES)
    ),
    Fault(
        "template",
        "the title is left out; {use}",
        lambda t: t.edited(lambda q, d: (q, Document("", "", d.text or d.title))),
        texts=True,
    ),
    Fault(
        "template",
        "the text is left out; {use}",
        lambda t: t.edited(lambda q, d: (q, Document("", d.title or d.text, ""))),
        texts=True,
    ),
    Fault(
        "template",
        "query and document have changed places; {use}",
        lambda t: t.edited(
            lambda q, d: (document_text(d, "pair"), Document("", "", q))
        ),
        texts=True,
    ),
    Fault(
        "template",
        "texts are in lower case; {use}",
        lambda t: t.edited(
            lambda q, d: (
                q.lower(),
                Document("", d.title.lower(), d.text.lower()),
            )
        ),
        texts=True,
    ),
)


def _sigmoid(scores: GoldenScores) -> GoldenScores:
    return 1 / (1 + np.exp(-scores.astype(np.float64)))


def _softmax(scores: GoldenScores) -> GoldenScores:
    return np.ones_like(scores)  # of one logit, whatever it is


@dataclass(frozen=True)
class ScoreActivation:
    """What is done to a score that is to be left alone."""

    name: str
    sentence: str
    apply: Callable[[GoldenScores], GoldenScores]


_RAW = "set sentence_transformers.activation_fn in config.json to torch.nn.modules."
ACTIVATIONS = (
    ScoreActivation(
        "activation",
        f"a sigmoid is applied, but the scores should be raw; {_RAW}linear.Identity, "
        "or ask the server for raw scores",
        _sigmoid,
    ),
    ScoreActivation(
        "activation",
        "a softmax is applied over one logit, which is 1 for every pair; the scores "
        "are to be raw: ask the server for raw scores, or set problem_type and the "
        "activation so that one label is not taken for a class",
        _softmax,
    ),
)


def find_cause(
    trial: FaultTrial,
    rows: Sequence[ModelInput] | None,
    found: GoldenScores,
    golden: GoldenScores,
    allowed: float,
) -> Cause:
    """The likeliest reason for scores that differ.

    Given the contract's own tokens, the model must give the golden scores. If it does
    not, the model has changed. Otherwise its input has, or what is done with the score.

    Args:
      trial: a reader of the folder, and the contract.
      rows: what was read; None: not known.
      found: scores that differ.
      golden: scores that were expected.
      allowed: difference that counts as none.
    """

    def same(a: GoldenScores, b: GoldenScores) -> bool:
        return bool((np.abs(a - b) <= allowed).all())

    base = trial.reader.scores(trial.given)
    if not same(base, golden):
        return _model_cause(trial, golden, same)
    for activation in ACTIVATIONS:
        if same(activation.apply(base), found):
            return Cause(activation.name, activation.sentence)
    words, activated = trial.words, None
    for fault in FAULTS:
        tried = fault.scores(trial)
        if tried is None or same(tried, golden):
            continue  # it cannot be, or makes no difference to these pairs
        sentence = fault.sentence.format(**words)
        if same(tried, found):
            return Cause(fault.name, sentence)
        if activated is None and same(_sigmoid(tried), found):
            both = f"{sentence}. And {ACTIVATIONS[0].sentence}"
            activated = Cause(f"{fault.name}, activation", both)
    return (
        activated
        or _precision_cause(trial, found, golden)
        or _token_cause(trial.promise, trial.given, rows)
    )


def _precision_cause(
    trial: FaultTrial, found: GoldenScores, golden: GoldenScores
) -> Cause | None:
    """Whether half precision makes errors as large as those found."""
    reader = trial.reader
    if not isinstance(reader, Stock):
        return None
    import torch

    error = float(np.abs(found - golden).max())
    for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        try:
            half = reader.otherwise(trial.given, lambda m, d=dtype: m.to(d))
        except (RuntimeError, NotImplementedError):
            continue  # not every machine computes in it
        rounding = float(np.abs(half - golden).max())
        if np.isfinite(rounding) and error <= _SAME_SIZE * rounding:
            return Cause(
                "precision",
                f"scores differ by up to {error:.2g}, as {name} makes them do "
                f"({rounding:.2g}); compute in float32, or raise --tolerance if that "
                "is meant",
            )
    return None


def _types(promise: Contract, golden: Golden) -> list[int]:
    first, second = promise.types
    behind = len(golden.tokens) - golden.document
    return [first] * golden.document + [second] * behind


def _agree(promise: Contract, parts: list[PairTokens]) -> bool:
    """Whether these texts have the golden tokens."""
    begin, middle, end = (
        len(ids) for ids in (promise.prefix, promise.middle, promise.suffix)
    )
    return all(
        golden.tokens[begin : golden.document - middle] == first
        and golden.tokens[golden.document : len(golden.tokens) - end]
        == second[: len(golden.tokens) - end - golden.document]
        for golden, (first, second) in zip(promise.golden, parts, strict=True)
    )


def _frame(
    promise: Contract,
    parts: PairTokens,
    *,
    prefix: list[int] | None = None,
    suffix: list[int] | None = None,
    length: int = 0,
) -> ModelInput:
    """Both texts within the special tokens; the second is cut to fit the length."""
    prefix = promise.prefix if prefix is None else prefix
    suffix = promise.suffix if suffix is None else suffix
    before = [*prefix, *parts[0], *promise.middle]
    room = (length or promise.length) - len(before) - len(suffix)
    behind = [*parts[1][: max(room, 0)], *suffix]
    first, second = promise.types
    types = [first] * len(before) + [second] * len(behind)
    return ModelInput([*before, *behind], types)


def _longest_first(promise: Contract, parts: PairTokens) -> PairTokens:
    """Both texts, the longer cut token by token, as tokenizers do by default."""
    around = len(promise.prefix) + len(promise.middle) + len(promise.suffix)
    room = promise.length - around
    a, b = len(parts[0]), len(parts[1])
    if a + b > room:
        short = min(a, b, room // 2)
        a, b = (room - short, short) if a > b else (short, room - short)
    return parts[0][:a], parts[1][:b]


# --- the model itself -----------------------------------------------------------------


def _model_cause(
    trial: FaultTrial,
    golden: GoldenScores,
    same: Callable[[GoldenScores, GoldenScores], bool],
) -> Cause:
    """Why a model gives other scores for the very same tokens."""
    promise, reader = trial.promise, trial.reader
    return (
        _tensor_cause(promise, contract.tensor_digests(reader.folder))
        or _config_cause(trial)
        or _padding_cause(trial, golden, same)
        or Cause(
            "golden scores",
            "weights and config.json are as exported, and yet the contract's own "
            "tokens score otherwise: the contract was edited, or this machine computes "
            "with less precision",
        )
    )


def _tensor_cause(promise: Contract, found: dict[str, str]) -> Cause | None:
    changed = [n for n, d in promise.tensors.items() if n in found and found[n] != d]
    absent = sorted(set(promise.tensors) - set(found))
    kinds = {found[name].partition(":")[0] for name in changed}
    stored = {digest.partition(":")[0] for digest in promise.tensors.values()}
    if kinds - stored:
        return Cause(
            "dtype",
            f"weights are stored as {', '.join(sorted(kinds))}, but the golden scores "
            f"were computed from {', '.join(sorted(stored))}; raise --tolerance if "
            "that is meant",
        )
    if not changed and not absent:
        return None
    heads = ("score.", "classifier.", "head.", "bert.pooler.")
    in_head = all(name.startswith(heads) for name in [*changed, *absent])
    parts = [f"{len(changed)} have other numbers"] * bool(changed)
    parts += [f"{len(absent)} are missing"] * bool(absent)
    first = ", ".join([*changed, *absent][:3])
    more = ", ..." if len(changed) + len(absent) > 3 else ""
    return Cause(
        "head" if in_head else "weights",
        f"of {len(promise.tensors)} tensors {' and '.join(parts)} ({first}{more}); "
        "take the safetensors files of the export",
    )


def _config_cause(trial: FaultTrial) -> Cause | None:
    model = open_checkpoint(config.Pretrained(path=str(trial.reader.folder))).model
    ours = json.loads(json.dumps(config.to_dict(model)))
    differing = [
        f"{name} {was!r} is {ours.get(name)!r}"
        for name, was in trial.promise.model.items()
        if name not in config.FREE_FIELDS and ours.get(name) != was
    ]
    if not differing:
        return None
    return Cause(
        "config",
        "the weights are the contract's, and config.json describes another model: "
        f"{'; '.join(differing)}",
    )


def _padding_cause(
    trial: FaultTrial,
    golden: GoldenScores,
    same: Callable[[GoldenScores, GoldenScores], bool],
) -> Cause | None:
    reader, promise = trial.reader, trial.promise
    if not isinstance(reader, Stock):
        return None
    described = json.loads((reader.folder / "config.json").read_text())
    pad = described.get("pad_token_id")
    if pad == promise.padding:
        return None
    if not same(reader.scores(trial.given, pad=promise.padding), golden):
        return None
    early = promise.suffix and pad == promise.suffix[-1]
    what = (
        "the end token, so the score is read one token early"
        if early
        else f"and the contract's is {promise.padding}"
    )
    return Cause(
        "padding token",
        f"pad_token_id in config.json is {pad}, {what}; set it to {promise.padding}",
    )


def _token_cause(
    promise: Contract, given: list[ModelInput], rows: Sequence[ModelInput] | None
) -> Cause:
    """What is known when nothing reproduces the scores: where tokens differ."""
    for number, (row, wanted) in enumerate(zip(rows or [], given, strict=False)):
        pairs = zip(row.tokens, wanted.tokens, strict=False)
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if place is None and len(row.tokens) != len(wanted.tokens):
            place = min(len(row.tokens), len(wanted.tokens))
        if place is not None:
            a, b = row.tokens[place : place + 3], wanted.tokens[place : place + 3]
            return Cause(
                "tokenizer",
                f"pair {number} has the tokens {a} at place {place}, but the contract "
                f"{b}; tokenizer.json or the text around the pair has changed",
            )
    del promise
    return Cause(
        "unknown",
        "the model gives the golden scores for the contract's tokens, and nothing that "
        "was tried gives these; compare the tokens that the server feeds with the "
        "contract's",
    )
