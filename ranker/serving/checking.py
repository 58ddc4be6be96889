"""Whether a folder still scores as its contract says, and what is wrong if not.

The golden pairs are scored again by *readers*: this package, and transformers' own
model. Where a reader finds other scores, each thing that is commonly lost in serving is
tried: the one that reproduces what was found is named.
"""

import importlib.util
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from ranker import config, errors, sharding
from ranker.batch import Rows
from ranker.data.records import Document
from ranker.data.text import TEMPLATES, Tokenizer, document_text
from ranker.errors import DataError
from ranker.models import build
from ranker.models.huggingface import flat, import_params, open_checkpoint
from ranker.serving import contract
from ranker.serving.contract import Contract, Golden

Scores = Float[np.ndarray, " 16"]

_ROUND = 32  # rows are padded to a multiple of this, so that few shapes are compiled
_PRECISION = 1e-5  # of the largest score
_FAR = 4  # lengths of a text that is not cut, at most


@dataclass(frozen=True)
class Row:
    """What a model is given for one pair."""

    tokens: list[int]
    types: list[int]


@dataclass(frozen=True)
class Cause:
    """Why scores differ."""

    name: str
    sentence: str


@dataclass(frozen=True)
class Result:
    """What one reader found."""

    reader: str
    largest: float  # difference of a score
    equal: int  # pairs
    first: int | None  # the first pair that differs
    found: Scores
    cause: Cause | None


class Reader(Protocol):
    """Loads a folder and scores rows."""

    name: str
    folder: pathlib.Path

    def rows(self) -> list[Row]:
        """The golden pairs as this folder has them read."""
        ...

    def scores(self, rows: Sequence[Row], *, left: bool = False) -> Scores:
        """Raw scores of rows, padded on the right or the left."""
        ...


class Ours:
    """This package's model and tokenizer."""

    name = "ranker"

    def __init__(self, folder: pathlib.Path, promise: Contract):
        """Loads the folder.

        Raises:
          ModelError: when the weights cannot be read.
        """
        self.folder, self.promise = folder, promise
        checkpoint = open_checkpoint(config.Pretrained(path=str(folder)))
        self.model = checkpoint.model
        mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
        whole = build.abstract(self.model, checkpoint.vocab_size, "score")
        graphdef, abstract = nnx.split(whole, nnx.Param)
        shardings = sharding.parameter_shardings(abstract, mesh)
        params, _ = import_params(checkpoint, "score", abstract, shardings)
        missing = [path for path, _ in flat(abstract) if path not in params]
        if missing:
            raise errors.ContractError(
                f"{folder}: the weights have no {', '.join(missing)}: no score head"
            )

        def score(params: dict[str, jax.Array], rows: Rows, index: jax.Array):
            def filled(path, leaf):
                name = ".".join(str(getattr(key, "key", key)) for key in path)
                return leaf.replace(params[name])

            is_leaf = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
            state = jax.tree_util.tree_map_with_path(filled, abstract, is_leaf=is_leaf)
            return nnx.merge(graphdef, state)(rows, index)  # type: ignore[operator]

        self._params, self._score = params, jax.jit(score)

    def rows(self) -> list[Row]:
        """Rows by this package's template and cut."""
        try:
            return _our_rows(self.folder, self.promise, self.promise.template)
        except DataError as error:
            if self.promise.template == "pair":
                # The tokenizer has lost what it puts around a pair.
                return _stock_rows(self.folder, self.promise)
            raise errors.ContractError(
                f"{self.folder}: the golden pairs cannot be read in the contract's "
                f"template {self.promise.template!r}: {error}"
            ) from error

    def scores(self, rows: Sequence[Row], *, left: bool = False) -> Scores:
        """Raw float32 scores; this package only ever pads on the right."""
        assert not left
        longest = max(len(row.tokens) for row in rows)
        T = -(-longest // _ROUND) * _ROUND
        shape = (len(rows), T)
        tokens = np.full(shape, self.promise.padding, np.int32)
        segments, positions, types = (np.zeros(shape, np.int32) for _ in range(3))
        last = np.zeros((len(rows), 1), np.int32)
        for i, row in enumerate(rows):
            n = len(row.tokens)
            tokens[i, :n], types[i, :n] = row.tokens, row.types
            segments[i, :n], positions[i, :n] = 1, np.arange(n)
            last[i] = i * T + (n - 1 if isinstance(self.model, config.Decoder) else 0)
        with jax.default_matmul_precision("highest"):
            given = Rows(tokens, segments, positions, types)  # type: ignore[arg-type]
            found = self._score(self._params, given, last)
        return np.asarray(found, np.float32)[:, 0]


class Stock:
    """transformers' own model and tokenizer, read as CrossEncoder does."""

    name = "transformers"

    def __init__(self, folder: pathlib.Path, promise: Contract):
        """Loads the folder; torch must be installed.

        Raises:
          ContractError: when transformers cannot load it.
        """
        from transformers import AutoModelForSequenceClassification
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.folder, self.promise = folder, promise
        try:
            self.model = AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True
            ).eval()
        except Exception as error:  # transformers raises many kinds
            raise errors.ContractError(
                f"transformers cannot load {folder}: {error}"
            ) from error

    def rows(self) -> list[Row]:
        """Rows by the folder's tokenizer, for the pair of texts of the contract."""
        return _stock_rows(self.folder, self.promise)

    def scores(self, rows: Sequence[Row], *, left: bool = False) -> Scores:
        """Raw scores of one batch, padded to its longest row."""
        import torch

        T = max(len(row.tokens) for row in rows)
        pad = getattr(self.model.config, "pad_token_id", None)
        shape = (len(rows), T)
        tokens = np.full(shape, self.promise.padding if pad is None else pad, np.int64)
        mask, types = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for i, row in enumerate(rows):
            n = len(row.tokens)
            place = slice(T - n, T) if left else slice(0, n)
            tokens[i, place], types[i, place], mask[i, place] = row.tokens, row.types, 1
        fields = dict(input_ids=tokens, attention_mask=mask)
        if getattr(self.model.config, "type_vocab_size", 0) > 1:
            fields["token_type_ids"] = types
        with torch.no_grad():
            inputs = {name: torch.from_numpy(one) for name, one in fields.items()}
            found = self.model(**inputs).logits
        return found[:, 0].float().numpy()


def _texts(promise: Contract, golden: Golden) -> tuple[str, str]:
    """The pair of texts that a stock tokenizer is given."""
    title, text = golden.title, golden.text
    both = f"{title} {text}".strip()
    return (
        promise.query.format(query=golden.query),
        promise.document.format(title=title, text=text, both=both),
    )


def _our_rows(folder: pathlib.Path, promise: Contract, template: Any) -> list[Row]:
    """The golden pairs in a template, with its special tokens and cut."""
    tokenizer = Tokenizer(folder, template)
    rows = []
    for golden in promise.golden:
        [prefix] = tokenizer.queries([golden.query])
        [ids] = tokenizer.documents([Document("", golden.title, golden.text)])
        one = tokenizer.segment(prefix, ids, promise.length)
        rows.append(Row(one.tokens, one.types))
    return rows


def _stock_tokenizer(folder: pathlib.Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many kinds
        raise errors.ContractError(
            f"transformers cannot load the tokenizer of {folder}: {error}"
        ) from error


def _stock_rows(folder: pathlib.Path, promise: Contract) -> list[Row]:
    tokenizer = _stock_tokenizer(folder)
    longest = min(tokenizer.model_max_length, _uncut(promise))
    rows = []
    for golden in promise.golden:
        found = tokenizer(
            *_texts(promise, golden),
            truncation="only_second",
            max_length=longest,
            return_token_type_ids=True,
        )
        rows.append(Row(found["input_ids"], found["token_type_ids"]))
    return rows


def _uncut(promise: Contract) -> int:
    """Tokens of a text that nobody cuts: what the model has positions for."""
    return min(_FAR * promise.length, promise.model.get("max_positions") or 1 << 30)


# --- checking -------------------------------------------------------------------------


def check(
    folder: pathlib.Path,
    promise: Contract,
    *,
    tolerance: float,
) -> Iterator[Result]:
    """Scores the golden pairs of `promise` by the model in `folder`, by each reader.

    Args:
      folder: with the model; its own, or another that should score equally.
      promise: what it should do.
      tolerance: difference that is allowed, in standard deviations of the scores.

    Yields:
      What each reader found; transformers' only where torch is installed.

    Raises:
      ContractError, ModelError: when the folder cannot be loaded.
    """
    for make in _readers():
        reader = make(folder, promise)
        sigmoid = isinstance(reader, Stock) and not _raw(folder)
        rows = reader.rows()
        found = reader.scores(rows, left=isinstance(reader, Stock) and _left(folder))
        found = _sigmoid(found) if sigmoid else found
        yield judge(reader, promise, rows, found, tolerance=tolerance)


def _readers() -> list[type]:
    return [Ours, Stock] if importlib.util.find_spec("torch") else [Ours]


def num_readers() -> int:
    """How many readers there are: 1 without torch."""
    return len(_readers())


def best_reader(folder: pathlib.Path, promise: Contract) -> Reader:
    """The reader that can try the most causes."""
    return _readers()[-1](folder, promise)


def judge(
    reader: Reader,
    promise: Contract,
    rows: Sequence[Row] | None,
    found: Scores,
    *,
    tolerance: float,
) -> Result:
    """Compares found scores with the golden ones, and finds the cause of a difference.

    Args:
      reader: of the folder; it tries what could be the cause.
      promise: the contract.
      rows: what was read; None: not known.
      found: scores, of this reader or from elsewhere.
      tolerance: as in `check`.
    """
    golden = np.array([one.score for one in promise.golden], np.float32)
    # No less than float32 can tell apart after some layers.
    allowed = max(
        tolerance * promise.scores["std"], _PRECISION * float(np.abs(golden).max())
    )
    differences = np.abs(golden - found)
    wrong = np.flatnonzero(~(differences <= allowed))
    cause = None
    if len(wrong):
        cause = find_cause(reader, promise, rows, found, golden, allowed)
    return Result(
        reader=reader.name,
        largest=float(differences.max()),
        equal=len(golden) - len(wrong),
        first=int(wrong[0]) if len(wrong) else None,
        found=found,
        cause=cause,
    )


def _sigmoid(scores: Scores) -> Scores:
    return 1 / (1 + np.exp(-scores))


def _raw(folder: pathlib.Path) -> bool:
    """Whether the folder tells CrossEncoder to leave scores as they are."""
    described = json.loads((folder / "config.json").read_text())
    named = described.get("sentence_transformers") or {}
    name = named.get("activation_fn")
    name = name or described.get("sbert_ce_default_activation_function") or ""
    return name.endswith("Identity")


def _left(folder: pathlib.Path) -> bool:
    path = folder / "tokenizer_config.json"
    described = json.loads(path.read_text()) if path.is_file() else {}
    return described.get("padding_side") == "left"


# --- causes ---------------------------------------------------------------------------

_ACTIVATION = (
    "a sigmoid is applied, and the scores are to be raw; set sentence_transformers."
    "activation_fn in config.json to torch.nn.modules.linear.Identity, or ask the "
    "server for raw scores"
)


def find_cause(
    reader: Reader,
    promise: Contract,
    rows: Sequence[Row] | None,
    found: Scores,
    golden: Scores,
    allowed: float,
) -> Cause:
    """The likeliest reason for scores that differ.

    Given the contract's own tokens, the model must give the golden scores. If it does
    not, the model has changed. Otherwise its input has, or what is done with the score.
    """

    def same(a: Scores, b: Scores) -> bool:
        return bool((np.abs(a - b) <= allowed).all())

    given = [Row(one.tokens, _types(promise, one)) for one in promise.golden]
    base = reader.scores(given)
    if not same(base, golden):
        return _model_cause(reader, promise)
    if same(_sigmoid(base), found):
        return Cause("activation", _ACTIVATION)
    activated: Cause | None = None
    backend = _stock_tokenizer(reader.folder).backend_tokenizer
    backend.no_truncation()
    for name, sentence, make in _alternatives(reader, promise, given, backend):
        try:
            tried = make()
        except (DataError, ValueError, IndexError):
            continue  # this folder cannot do it, so it is not what was done
        if same(tried, golden):
            continue  # it makes no difference to these pairs
        if same(tried, found):
            return Cause(name, sentence)
        if same(_sigmoid(tried), found) and not activated:
            activated = Cause(f"{name}, activation", f"{sentence}. And {_ACTIVATION}")
    return activated or _token_cause(promise, given, rows)


def _types(promise: Contract, golden: Golden) -> list[int]:
    first, second = promise.types
    behind = len(golden.tokens) - golden.document
    return [first] * golden.document + [second] * behind


Alternative = tuple[str, str, Callable[[], Scores]]


def _alternatives(
    reader: Reader, promise: Contract, given: list[Row], backend: Any
) -> Iterator[Alternative]:
    """What is commonly done wrong: cause, sentence, the scores that it would give.

    Those that change the contract's own tokens come first, then those that need the
    folder's tokenizer, where that still gives the contract's tokens.
    """
    suffix, prefix = promise.suffix, promise.prefix
    names = [promise.special_tokens.get(str(token), "") for token in suffix]
    behind, last = repr(" ".join(names)), repr(names[-1])
    before = " ".join(promise.special_tokens.get(str(token), "") for token in prefix)

    def cut(start: int, stop: int | None) -> list[Row]:
        return [Row(r.tokens[start:stop], r.types[start:stop]) for r in given]

    missing = "; the text must end with the contract's `suffix`"
    yield (
        "end token",
        f"what stands behind the document ({behind}) is missing{missing}",
        lambda: reader.scores(cut(0, -len(suffix))),
    )
    yield (
        "end token",
        f"the last token ({last}) is missing{missing}",
        lambda: reader.scores(cut(0, -1)),
    )
    yield (
        "end token",
        f"the last token ({last}) is there twice: the text ends with the contract's "
        "`suffix`, and the tokenizer puts another one behind it",
        lambda: reader.scores(
            [Row([*r.tokens, suffix[-1]], [*r.types, r.types[-1]]) for r in given]
        ),
    )
    if prefix:
        yield (
            "begin token",
            f"what stands before the query ({before!r}) is missing; the text must "
            "begin with the contract's `prefix`",
            lambda: reader.scores(cut(len(prefix), None)),
        )
    if isinstance(reader, Stock):
        yield (
            "padding side",
            "padding is on the left, and belongs on the right; set padding_side in "
            "tokenizer_config.json to right",
            lambda: reader.scores(given, left=True),
        )
    yield (
        "token types",
        "all tokens have type 0, and the document's have type 1; the tokenizer must "
        "give token_type_ids (model_input_names in tokenizer_config.json)",
        lambda: reader.scores([Row(r.tokens, [0] * len(r.types)) for r in given]),
    )
    texts = [(g.query, Document("", g.title, g.text)) for g in promise.golden]
    templates = sorted([*TEMPLATES, "pair"], key=lambda name: name != promise.template)
    for template in templates:
        parts = _parts(backend, texts, template)
        if _agree(promise, parts):
            yield from _by_parts(reader, promise, backend, template, texts, parts)
            return


def _by_parts(
    reader: Reader,
    promise: Contract,
    backend: Any,
    template: str,
    texts: list[tuple[str, Document]],
    parts: list["Parts"],
) -> Iterator[Alternative]:
    """Other cuts, frames and words, of texts as the tokenizer reads them."""
    length, longest = promise.length, _longest(reader.folder)

    def framed(parts: list[Parts], **how: Any) -> Callable[[], Scores]:
        return lambda: reader.scores([_frame(promise, one, **how) for one in parts])

    names = [promise.special_tokens.get(str(token), "") for token in promise.suffix]
    yield (
        "end token",
        f"what stands behind the document ({' '.join(names)!r}) is missing; the text "
        "must end with the contract's `suffix`",
        framed(parts, suffix=[]),
    )
    if promise.prefix:
        yield (
            "begin token",
            "what stands before the query is missing; the text must begin with the "
            "contract's `prefix`",
            framed(parts, prefix=[]),
        )
    fix = f"set model_max_length in tokenizer_config.json to {length}"
    yield (
        "truncation",
        f"texts are not cut, and are to be cut to {length} tokens; {fix}, and have the "
        "tokenizer truncate",
        framed(parts, length=_uncut(promise)),
    )
    if longest and longest != length:
        yield (
            "truncation",
            f"texts are cut to {longest} tokens, and are to be cut to {length}; {fix}",
            framed(parts, length=longest),
        )
    yield (
        "truncation",
        "the cut takes the special tokens at the end too; cut the document alone, and "
        "put the contract's `suffix` behind it",
        lambda: reader.scores(
            [
                Row(row.tokens[:length], row.types[:length])
                for row in (_frame(promise, one, length=1 << 30) for one in parts)
            ]
        ),
    )
    yield (
        "truncation",
        "the longer of both texts is cut, and only the document may be; truncate with "
        "only_second",
        framed([_longest_first(promise, one) for one in parts]),
    )
    if template != promise.template:
        use = (
            f"; the golden tokens are in the template {template!r}, and the contract "
            f"names {promise.template!r}: it was edited"
        )
    else:
        use = (
            f"; the contract's template is {template!r}: its query is "
            f"{promise.query!r} and its document {promise.document!r}"
        )
    for other in (*TEMPLATES, "pair"):
        if other == template:
            continue
        yield (
            "template",
            f"texts are in the template {other!r}{use}",
            lambda other=other: reader.scores(_our_rows(reader.folder, promise, other)),
        )
        without = "texts come without the template's words"
        yield (
            "template",
            f"{without if other == 'pair' else f'words are those of {other!r}'}{use}",
            framed(_parts(backend, texts, other)),
        )
    for what, edit in _EDITS.items():
        edited = [edit(query, document) for query, document in texts]
        yield (
            "template",
            f"{what}{use}",
            framed(_parts(backend, edited, template)),
        )


_EDITS: dict[str, Callable[[str, Document], tuple[str, Document]]] = {
    "the title is left out": lambda q, d: (q, Document("", "", d.text or d.title)),
    "the text is left out": lambda q, d: (q, Document("", d.title or d.text, "")),
    "query and document have changed places": lambda q, d: (
        document_text(d, "pair"),
        Document("", "", q),
    ),
    "texts are in lower case": lambda q, d: (
        q.lower(),
        Document("", d.title.lower(), d.text.lower()),
    ),
}

Parts = tuple[list[int], list[int]]  # ids of both texts, whole, without special tokens


def _parts(
    backend: Any, texts: Sequence[tuple[str, Document]], template: Any
) -> list[Parts]:
    words = TEMPLATES.get(template)
    pairs = [
        (
            words.query.format(query=query) if words else query,
            document_text(document, template),
        )
        for query, document in texts
    ]
    firsts, seconds = (
        [one.ids for one in backend.encode_batch(list(side), add_special_tokens=False)]
        for side in zip(*pairs, strict=True)
    )
    return list(zip(firsts, seconds, strict=True))


def _agree(promise: Contract, parts: list[Parts]) -> bool:
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
    parts: Parts,
    *,
    prefix: list[int] | None = None,
    suffix: list[int] | None = None,
    length: int = 0,
) -> Row:
    """Both texts within the special tokens; the second is cut to fit the length."""
    prefix = promise.prefix if prefix is None else prefix
    suffix = promise.suffix if suffix is None else suffix
    before = [*prefix, *parts[0], *promise.middle]
    room = (length or promise.length) - len(before) - len(suffix)
    behind = [*parts[1][: max(room, 0)], *suffix]
    first, second = promise.types
    types = [first] * len(before) + [second] * len(behind)
    return Row([*before, *behind], types)


def _longest_first(promise: Contract, parts: Parts) -> Parts:
    """Both texts, the longer cut token by token, as tokenizers do by default."""
    around = len(promise.prefix) + len(promise.middle) + len(promise.suffix)
    room = promise.length - around
    a, b = len(parts[0]), len(parts[1])
    if a + b > room:
        short = min(a, b, room // 2)
        a, b = (room - short, short) if a > b else (short, room - short)
    return parts[0][:a], parts[1][:b]


def _longest(folder: pathlib.Path) -> int:
    """Tokens that the folder's tokenizer cuts to; 0: not at all."""
    path = folder / "tokenizer_config.json"
    described = json.loads(path.read_text()) if path.is_file() else {}
    longest = described.get("model_max_length", 0)
    return int(longest) if 0 < longest < 1e9 else 0


def _model_cause(reader: Reader, promise: Contract) -> Cause:
    """Why a model gives other scores for the very same tokens."""
    folder = reader.folder
    found = contract.tensor_digests(folder)
    changed = [n for n, d in promise.tensors.items() if n in found and found[n] != d]
    absent = sorted(set(promise.tensors) - set(found))
    kinds = {found[name].partition(":")[0] for name in changed}
    stored = {digest.partition(":")[0] for digest in promise.tensors.values()}
    if kinds - stored:
        return Cause(
            "dtype",
            f"weights are stored as {', '.join(sorted(kinds))}, and the golden scores "
            f"were computed from {', '.join(sorted(stored))}; raise --tolerance if "
            "that is meant",
        )
    if changed or absent:
        heads = ("score.", "classifier.", "head.", "bert.pooler.")
        in_head = all(name.startswith(heads) for name in [*changed, *absent])
        parts = [f"{len(changed)} have other numbers"] * bool(changed)
        parts += [f"{len(absent)} are missing"] * bool(absent)
        first = ", ".join([*changed, *absent][:3])
        return Cause(
            "head" if in_head else "weights",
            f"of {len(promise.tensors)} tensors {' and '.join(parts)} ({first}"
            f"{', ...' if len(changed) + len(absent) > 3 else ''}); take the "
            "safetensors files of the export",
        )
    model = open_checkpoint(config.Pretrained(path=str(folder))).model
    ours = json.loads(json.dumps(config.to_dict(model)))
    differing = [
        f"{name} {was!r} is {ours.get(name)!r}"
        for name, was in promise.model.items()
        if name not in ("dtype", "remat", "dropout") and ours.get(name) != was
    ]
    if differing:
        return Cause(
            "config",
            f"the weights are the contract's, and config.json describes another model: "
            f"{'; '.join(differing)}",
        )
    described = json.loads((folder / "config.json").read_text())
    pad, last = described.get("pad_token_id"), promise.suffix[-1]
    if isinstance(reader, Stock) and pad == last and promise.pooling == "last token":
        return Cause(
            "padding token",
            f"pad_token_id in config.json is {pad}, the end token, so the score is "
            f"read one token early; set it to {promise.padding}",
        )
    return Cause(
        "golden scores",
        "weights and config.json are as exported, and yet the contract's own tokens "
        "score otherwise: the contract was edited, or this machine computes with less "
        "precision",
    )


def _token_cause(
    promise: Contract, given: list[Row], rows: Sequence[Row] | None
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
                f"pair {number} has the tokens {a} at place {place}, and the contract "
                f"{b}; tokenizer.json or the text around the pair has changed",
            )
    return Cause(
        "unknown",
        "the model gives the golden scores for the contract's tokens, and nothing that "
        "was tried gives these; compare the tokens that the server feeds with the "
        "contract's",
    )
