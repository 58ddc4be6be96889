"""Readers of an exported folder: this package, transformers, and ONNX files.

A reader makes rows of the golden pairs as its folder has them read, and scores rows.
"""

import importlib.util
import json
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Float

from ranker import config, errors
from ranker.batch import Rows
from ranker.data.records import Document
from ranker.data.text import Tokenizer
from ranker.errors import DataError
from ranker.models.huggingface import open_checkpoint
from ranker.serving import packed, runtimes
from ranker.serving.contract import Contract, Golden

GoldenScores = Float[np.ndarray, " 16"]

_FAR = 4  # lengths of a text that is not cut, at most


@dataclass(frozen=True)
class ModelInput:
    """What a model is given for one pair."""

    tokens: list[int]
    types: list[int]
    hidden: tuple[int, ...] = ()  # ids that are not attended to


class Reader(Protocol):
    """Loads a folder and scores rows."""

    name: str
    folder: pathlib.Path
    allowed: float  # difference of a score that rounding makes

    def rows(self) -> list[ModelInput]:
        """The golden pairs as this folder has them read."""
        ...

    def scores(self, rows: Sequence[ModelInput], *, left: bool = False) -> GoldenScores:
        """Raw scores of rows, padded on the right or the left."""
        ...


class Ours:
    """This package's model and tokenizer."""

    name, allowed = "ranker", 0.0

    def __init__(self, folder: pathlib.Path, promise: Contract):
        """Loads the folder.

        Raises:
          ModelError: when the weights cannot be read.
        """
        self.folder, self.promise = folder, promise
        self._packed = packed.place_weights(
            open_checkpoint(config.Pretrained(path=str(folder)))
        )

    def rows(self) -> list[ModelInput]:
        """Rows by this package's template and cut."""
        try:
            return template_rows(self.folder, self.promise, self.promise.template)
        except DataError as error:
            if self.promise.template == "pair":
                # A decoder's own pair, or the tokenizer has lost what stands around it.
                return stock_rows(self.folder, self.promise)
            raise errors.ContractError(
                f"{self.folder}: the golden pairs cannot be read in the contract's "
                f"template {self.promise.template!r}: {error}"
            ) from error

    def scores(self, rows: Sequence[ModelInput], *, left: bool = False) -> GoldenScores:
        """Raw float32 scores; this package only ever pads on the right."""
        assert not left
        T = packed.row_length(max(len(row.tokens) for row in rows))
        shape = (len(rows), T)
        tokens, segments, positions, types = (np.zeros(shape, np.int32) for _ in "tspt")
        last = np.zeros((len(rows), 1), np.int32)
        decoder = isinstance(self._packed.model, config.Decoder)
        for i, row in enumerate(rows):
            n = len(row.tokens)
            tokens[i, :n], types[i, :n] = row.tokens, row.types
            segments[i, :n] = ~np.isin(row.tokens, row.hidden)
            positions[i, :n] = np.arange(n)
            last[i] = i * T + (n - 1 if decoder else 0)
        given = Rows(tokens, segments, positions, types)  # type: ignore[arg-type]
        with jax.default_matmul_precision("highest"):
            found = self._packed.score(self._packed.params, given, last)
        return np.asarray(found, np.float32)[:, 0]


class Stock:
    """transformers' own model and tokenizer, read as CrossEncoder does.

    A head of modules is sentence-transformers' own: transformers would draw another.
    """

    allowed = 0.0

    def __init__(self, folder: pathlib.Path, promise: Contract):
        """Loads the folder; torch must be installed.

        Raises:
          ContractError: when it cannot be loaded.
        """
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.folder, self.promise = folder, promise
        self.modular = has_modules(folder)
        self.name = "sentence-transformers" if self.modular else "transformers"
        try:
            self.model = _load_modules(folder) if self.modular else _load_class(folder)
        except Exception as error:  # both raise many kinds
            raise errors.ContractError(
                f"{self.name} cannot load {folder}: {error}"
            ) from error

    def rows(self) -> list[ModelInput]:
        """Rows by the folder's tokenizer, for the pair of texts of the contract."""
        return stock_rows(self.folder, self.promise)

    def scores(
        self, rows: Sequence[ModelInput], *, left: bool = False, pad: int | None = None
    ) -> GoldenScores:
        """Raw scores of one batch, padded to its longest row.

        Args:
          rows: of tokens.
          left: padded on the left.
          pad: padding token in place of the folder's; a decoder's score is read at the
            last token that is another.
        """
        import torch

        settings: Any = self.model.config
        T = max(len(row.tokens) for row in rows)
        before = getattr(settings, "pad_token_id", None)
        pad = before if pad is None else pad
        shape = (len(rows), T)
        tokens = np.full(shape, self.promise.padding if pad is None else pad, np.int64)
        mask, types = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for i, row in enumerate(rows):
            n = len(row.tokens)
            place = slice(T - n, T) if left else slice(0, n)
            tokens[i, place], types[i, place] = row.tokens, row.types
            mask[i, place] = ~np.isin(row.tokens, row.hidden)
        fields = dict(input_ids=tokens, attention_mask=mask)
        if getattr(settings, "type_vocab_size", 0) > 1:
            fields["token_type_ids"] = types
        settings.pad_token_id = pad
        try:
            with torch.no_grad():
                inputs = {name: torch.from_numpy(one) for name, one in fields.items()}
                if self.modular:
                    found = self.model(inputs)["scores"]
                else:
                    found = self.model(**inputs).logits
        finally:
            settings.pad_token_id = before
        return found[:, 0].float().numpy()

    def otherwise(self, rows: Sequence[ModelInput], change: Any) -> GoldenScores:
        """Scores of a copy of the model that `change` was done to."""
        import copy

        whole = self.model
        self.model = copy.deepcopy(whole)
        try:
            change(self.model)
            return self.scores(rows)
        finally:
            self.model = whole


def _load_class(folder: pathlib.Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(
        folder, local_files_only=True
    ).eval()


def _load_modules(folder: pathlib.Path) -> Any:
    from sentence_transformers import CrossEncoder

    whole = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    return whole.eval()


class Graph:
    """An ONNX file of the folder, one row a run."""

    def __init__(
        self, folder: pathlib.Path, promise: Contract, runtime: Any, allowed: float
    ):
        self.folder, self.promise, self.allowed = folder, promise, allowed
        self._runtime = runtime
        self.name = f"{runtime.name} {runtime.precision}"

    def rows(self) -> list[ModelInput]:
        """Rows by the folder's tokenizer."""
        return stock_rows(self.folder, self.promise)

    def scores(self, rows: Sequence[ModelInput], *, left: bool = False) -> GoldenScores:
        """Raw float32 scores."""
        assert not left
        return np.concatenate([self._runtime.feed(*_arrays(row)) for row in rows])


def _arrays(row: ModelInput) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, mask and types [1, tokens], int64."""
    ids = np.array([row.tokens], np.int64)
    mask = (~np.isin(ids, row.hidden)).astype(np.int64)
    return ids, mask, np.array([row.types], np.int64)


def readers(folder: pathlib.Path, promise: Contract) -> Iterator[Reader]:
    """All readers of a folder: ours, transformers' with torch, its ONNX files'.

    Raises:
      ContractError, ModelError: when one cannot load it.
    """
    yield Ours(folder, promise)
    if has_stock(folder):
        yield Stock(folder, promise)
    for runtime, precision, allowed in _files(folder, promise):
        if runtimes.installed(runtime):
            opened = runtimes.open_runtime(folder, runtime, precision)
            yield Graph(folder, promise, opened, allowed)


def _files(
    folder: pathlib.Path, promise: Contract
) -> Iterator[tuple[runtimes.Name, runtimes.Precision, float]]:
    """Runtime, precision and allowed difference of each ONNX file that is served."""
    if (folder / runtimes.FILES["float32"]).is_file():
        yield "onnxruntime", "float32", 0.0
    for name, one in promise.precisions.items():
        path = folder / runtimes.FILES.get(name, "-")  # type: ignore[call-overload]
        if one.get("accepted") and path.is_file():
            yield one["runtime"], name, one["largest_difference"]  # type: ignore[misc]


def has_torch() -> bool:
    """Whether transformers' own model can be read."""
    return importlib.util.find_spec("torch") is not None


def has_modules(folder: pathlib.Path) -> bool:
    """Whether the folder's score is by modules of sentence-transformers."""
    return (folder / "modules.json").is_file()


def has_stock(folder: pathlib.Path) -> bool:
    """Whether what `Stock` reads the folder with is installed."""
    modules = importlib.util.find_spec("sentence_transformers") is not None
    return has_torch() and (modules or not has_modules(folder))


def best_reader(folder: pathlib.Path, promise: Contract) -> Reader:
    """The reader that can try the most causes."""
    return (Stock if has_stock(folder) else Ours)(folder, promise)


def is_raw(folder: pathlib.Path) -> bool:
    """Whether the folder tells CrossEncoder to leave scores as they are."""
    described = json.loads((folder / "config.json").read_text())
    named = described.get("sentence_transformers") or {}
    name = named.get("activation_fn")
    name = name or described.get("sbert_ce_default_activation_function") or ""
    return name.endswith("Identity")


def pads_left(folder: pathlib.Path) -> bool:
    """Whether the folder's tokenizer pads on the left."""
    return _tokenizer_fields(folder).get("padding_side") == "left"


def cut_length(folder: pathlib.Path) -> int:
    """Tokens that the folder's tokenizer cuts to; 0: not at all."""
    longest = _tokenizer_fields(folder).get("model_max_length", 0)
    return int(longest) if 0 < longest < 1e9 else 0


def _tokenizer_fields(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def positions(promise: Contract) -> int:
    """Tokens that the model has positions for."""
    return promise.model.get("max_positions") or 1 << 30


def uncut(promise: Contract) -> int:
    """Tokens of a text that nobody cuts: what the model has positions for."""
    return min(_FAR * promise.length, positions(promise))


def _texts(promise: Contract, golden: Golden) -> tuple[str, str]:
    """The pair of texts that a stock tokenizer is given."""
    title, text = golden.title, golden.text
    both = f"{title} {text}".strip()
    return (
        promise.query.format(query=golden.query),
        promise.document.format(title=title, text=text, both=both),
    )


def template_rows(
    folder: pathlib.Path, promise: Contract, template: Any
) -> list[ModelInput]:
    """The golden pairs in a template, with its special tokens and cut.

    Raises:
      DataError: when the tokenizer lacks what the template needs.
    """
    tokenizer = Tokenizer(folder, template)
    rows = []
    for golden in promise.golden:
        [prefix] = tokenizer.queries([golden.query])
        title, text = golden.title, golden.text
        [ids] = tokenizer.documents([Document("", title, text)])
        one = tokenizer.segment(prefix, ids, promise.length)
        rows.append(ModelInput([int(token) for token in one.tokens], one.types))
    return rows


def stock_tokenizer(folder: pathlib.Path) -> Any:
    """The folder's tokenizer as transformers loads it.

    Raises:
      ContractError: when it cannot.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many kinds
        raise errors.ContractError(
            f"transformers cannot load the tokenizer of {folder}: {error}"
        ) from error


def stock_rows(folder: pathlib.Path, promise: Contract) -> list[ModelInput]:
    """The golden pairs as the folder's own tokenizer joins and cuts them."""
    tokenizer = stock_tokenizer(folder)
    longest = min(tokenizer.model_max_length, uncut(promise))
    rows = []
    for golden in promise.golden:
        found = tokenizer(
            *_texts(promise, golden),
            truncation="only_second",
            max_length=longest,
            return_token_type_ids=True,
        )
        rows.append(ModelInput(found["input_ids"], found["token_type_ids"]))
    return rows
