"""A ranker as an object: a folder is loaded, and pairs of texts are scored.

model = ranker.load("runs/first/export")
model.rank("cheap flights", ["Low fares to Rome.", "A recipe for bread."])
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from ranker import config
from ranker.data import passages as windows
from ranker.data.backends import load_tokenizer
from ranker.data.text import Tokenizer, answers_of
from ranker.errors import DataError, ModelError, shown
from ranker.models.folder import resolve_folder
from ranker.models.huggingface import export_huggingface, open_checkpoint
from ranker.serving import contract, golden, packed
from ranker.serving.contract import Contract
from ranker.serving.frame import (
    Frame,
    PairEncoder,
    PairTexts,
    contract_frame,
    own_frame,
    tokenizer_frame,
)


@dataclass(frozen=True)
class LoadedRanker:
    """A ranker that scores pairs of a query and a document.

    Attributes:
      folder: that it was loaded from.
      frame: what stands around two texts, and the length that they are cut to.
      contract: what the folder promises; None where it has no contract.
    """

    folder: pathlib.Path
    frame: Frame
    contract: Contract | None
    scorer: packed.PackedModel = field(repr=False)
    encoder: PairEncoder = field(repr=False)
    loaded: Any = field(repr=False)  # tokenizer of transformers

    def predict(
        self, pairs: Sequence[tuple[str, str | PairTexts | dict]]
    ) -> Float[np.ndarray, " n"]:
        """Raw scores of pairs: unbounded, higher is better, nothing applied to them.

        Texts beyond `frame.length` are cut, the document first; where the contract says
        so, a long document is read by passages instead. The same pair has the
        same score in any company, but for rounding in the seventh digit.

        Args:
          pairs: of a query and a document. A document is a text, a (title, text) pair,
            or a dict with "title" and "text".

        Returns:
          float32, in the order of the pairs.

        Raises:
          DataError: for something else than pairs of texts, naming the pair.

        Example:
          >>> import ranker  # doctest: +SKIP
          >>> model = ranker.load("export")  # doctest: +SKIP
          >>> model.predict([("red planet", "Mars"), ("red planet", "Venus")])
          ... # doctest: +SKIP
          array([ 1.93, -0.48], dtype=float32)
        """
        found = check_pairs(pairs)
        if self.frame.passages.most == 1:
            return self.scorer(self.encoder.pairs(found))
        segments, counts = self.encoder.parts(found)
        of = windows.numbers(counts)
        return windows.pool_scores(self.scorer(segments), of, self.frame.passages.score)

    def rank(
        self,
        query: str,
        documents: Sequence[str | PairTexts | dict],
        top_k: int | None = None,
    ) -> list[tuple[int, float]]:
        """Documents by score, best first.

        Args:
          query: a text.
          documents: as in `predict`.
          top_k: how many are given; None: all.

        Returns:
          (index in `documents`, raw score); equal scores stay in the order given.

        Raises:
          DataError: as `predict`, and for a `top_k` below 1.
        """
        if top_k is not None and not _is_count(top_k):
            raise DataError(f"top_k is {top_k!r}; expected a number from 1, or None")
        if isinstance(documents, (str, bytes, dict)):
            raise DataError(
                f"documents is one {type(documents).__name__}; expected a list of texts"
            )
        scores = self.predict([(query, document) for document in documents])
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [(int(i), float(scores[i])) for i in order]

    def save(self, folder: str | pathlib.Path, *, pairs: Sequence = ()) -> None:
        """Writes an export: weights, tokenizer, and a contract with golden pairs.

        Args:
          folder: target; made if missing. Not the one that the model came from.
          pairs: your own (query, document) pairs for golden scores; without them the
            contract's pairs are kept, or texts that come with this package are used.

        Raises:
          DataError: for pairs that are none.
          ModelError: when the model's family cannot express it.
        """
        folder = pathlib.Path(folder)
        if folder.exists() and folder.samefile(self.folder):
            raise ModelError(
                f"{folder} is what the model was loaded from, and would be overwritten "
                "while it is read; save to another folder"
            )
        network = self.scorer
        with tempfile.TemporaryDirectory() as kept:
            self.loaded.save_pretrained(kept)
            export_huggingface(
                folder,
                network.model,
                network.params,
                head="score",
                tokenizer=pathlib.Path(kept),
                length=self.frame.length,
            )
        golden.frame_pairs(folder, self.frame)
        texts = golden.texts(check_pairs(pairs), self.contract)
        golden.write_contract(
            folder,
            golden.ModelFacts(
                stage=self.contract.stage if self.contract else self.folder.name,
                template=self.contract.template if self.contract else "pair",
                model=network.model,
                frame=self.frame,
            ),
            texts,
            self.scorer,
        )


def load(
    path: str | pathlib.Path,
    *,
    revision: str = "",
    template: str = "",
    length: int = 0,
    passages: config.Passages = config.ONE_PASSAGE,
) -> LoadedRanker:
    """Loads a ranker: an export with its contract, or any checkpoint that ranks.

    A folder without a contract is read as its own tokenizer puts a pair together, which
    is what sentence-transformers does.

    Args:
      path: folder, or name on the hub.
      revision: of a hub name: branch, tag or commit.
      template: words around the texts, for a folder without a contract; a name such as
        "qwen3_reranker", or QUERY ||| DOCUMENT ||| END (docs/checkpoints.md).
      length: tokens that a pair is cut to; 0: the contract's, else the tokenizer's.
      passages: how a document longer than that is read, for a folder without a
        contract, such as `config.Passages(most=4, overlap=32, score="max")`.

    Raises:
      ContractError: for a contract that cannot be read.
      DataError: for a tokenizer that cannot.
      ModelError: for weights that cannot, or that give no score.
    """
    folder = resolve_folder(str(path), revision)
    promise = (
        contract.load_contract(folder) if (folder / contract.FILE).is_file() else None
    )
    several = passages != config.ONE_PASSAGE
    if promise and (template or length or several):
        given = "template" if template else "length" if length else "passages"
        raise DataError(
            f"{given} is given, and {folder / contract.FILE} has its own: leave it out"
        )
    answers = answers_of(promise.template if promise else template or "pair")
    checkpoint = open_checkpoint(config.Pretrained(path=str(folder)), answers)
    loaded = load_tokenizer(folder)
    if promise:
        frame = contract_frame(promise)
    elif template:
        own = own_frame(loaded, checkpoint.model, length)
        frame = tokenizer_frame(Tokenizer(folder, template), own.length)
    else:
        frame = own_frame(loaded, checkpoint.model, length)
    if several:
        frame = dataclasses.replace(frame, passages=passages)
    return LoadedRanker(
        folder=folder,
        frame=frame,
        contract=promise,
        scorer=packed.place_weights(checkpoint),
        encoder=PairEncoder(frame, loaded.backend_tokenizer),
        loaded=loaded,
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and bool(value >= 1)


def check_pairs(pairs: Any) -> list[tuple[str, PairTexts]]:
    """Pairs of a query and a document's title and text.

    Raises:
      DataError: for anything else, naming the pair.
    """
    if isinstance(pairs, (str, bytes, dict)) or not hasattr(pairs, "__iter__"):
        raise DataError(
            f"found {shown(pairs)}; expected a list of (query, document) pairs"
        )
    pairs = list(pairs)
    if len(pairs) == 2 and all(isinstance(one, str) for one in pairs):
        raise DataError(
            "found two texts; expected a list of pairs: for one pair give "
            "[(query, document)]"
        )
    found = []
    for number, pair in enumerate(pairs):
        if isinstance(pair, (str, bytes, dict)) or not _is_pair(pair):
            raise DataError(
                f"pair {number} is {shown(pair)}; expected (query, document)"
            )
        query, document = pair
        found.append(
            (
                check_pair_text(query, f"pair {number}: the query"),
                check_document(document, f"pair {number}: the document"),
            )
        )
    return found


def _is_pair(value: Any) -> bool:
    try:
        return len(value) == 2
    except TypeError:
        return False


def check_pair_text(value: Any, what: str) -> str:
    """A text that can be tokenised.

    Raises:
      DataError: for something else, or a text with half a character (a lone surrogate).
    """
    if not isinstance(value, str):
        raise DataError(f"{what} is {shown(value)}; expected a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} has half a character (a lone surrogate) at place {error.start}; "
            "decode the text with errors='replace'"
        ) from error
    return value


def check_document(value: Any, what: str) -> PairTexts:
    """Title and text of a document: a text, a (title, text) pair, or a dict of both.

    Raises:
      DataError: for anything else.
    """
    if isinstance(value, str):
        return "", check_pair_text(value, what)
    if isinstance(value, dict) and set(value) <= {"title", "text"} and value:
        parts = value.get("title") or "", value.get("text") or ""
    elif isinstance(value, (tuple, list)) and len(value) == 2:
        parts = value
    else:
        raise DataError(
            f"{what} is {shown(value)}; expected a text, (title, text), or a dict with "
            "title and text"
        )
    return check_pair_text(parts[0], what), check_pair_text(parts[1], what)
