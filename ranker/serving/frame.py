"""How two texts become one row of tokens: by a contract, or as a tokenizer joins them.

The parts of a pair are tokenised on their own and joined as ids, as in training. So a
query costs once for all its documents, and the ids of a document can be kept.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ranker import config
from ranker.data import passages
from ranker.data.text import Segment, Tokenizer, pair_types
from ranker.errors import DataError
from ranker.serving.contract import Contract

PairTexts = tuple[str, str]  # title and text of a document; either or both may be empty

_UNBOUNDED = 10**6  # tokens; transformers says 1e30 where a tokenizer has no limit
_DEFAULT_LENGTH = 512  # tokens a pair, where neither tokenizer nor model has a limit


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What stands around the two texts of a pair, and how long the whole may be."""

    query: str  # first text: {query}
    document: str  # second text: {title} and {text}, or {both}
    prefix: tuple[int, ...]  # ids before the first text
    middle: tuple[int, ...]  # ids between the texts
    suffix: tuple[int, ...]  # ids after the second text, never cut
    types: tuple[int, int]  # token types of the first text and of the second
    length: int  # tokens a pair, special tokens included
    padding: int  # id
    last: bool  # the score is read at the last token; else at the first
    passages: config.Passages = config.ONE_PASSAGE  # of a document longer than that

    @property
    def fixed(self) -> int:
        """Tokens around the two texts."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    def query_text(self, query: str) -> str:
        """The first text of the pair."""
        return self.query.format(query=query)

    def document_text(self, document: PairTexts) -> str:
        """The second text of the pair."""
        title, text = document
        both = f"{title} {text}".strip()
        return self.document.format(title=title, text=text, both=both)

    def room(self, query: int) -> int:
        """Tokens left for a document after a query of so many; at least 1."""
        return self.length - self.fixed - min(query, self.longest_query(query))

    def longest_query(self, query: int) -> int:
        """Tokens kept of a query of so many.

        All, while that leaves room for one token of the document. A query beyond that
        was never trained on; half of the room is the document's then.
        """
        room = self.length - self.fixed
        return query if query < room else room // 2

    def segment(self, query: Sequence[int], document: Sequence[int]) -> Segment:
        """Joins ids of a query and of a document; cuts the document's last tokens."""
        before = self._before(query)
        room = self.length - len(before) - len(self.suffix)
        return self._joined(before, document[:room])

    def segments(self, query: Sequence[int], document: Sequence[int]) -> list[Segment]:
        """As `segment`, all passages of the document that are read."""
        before = self._before(query)
        room = self.length - len(before) - len(self.suffix)
        parts = passages.cut_passages(document, room, self.passages)
        return [self._joined(before, part) for part in parts]

    def _before(self, query: Sequence[int]) -> list[int]:
        kept = self.longest_query(len(query))
        return [*self.prefix, *query[:kept], *self.middle]

    def _joined(self, before: Sequence[int], document: Sequence[int]) -> Segment:
        tokens = [*before, *document, *self.suffix]
        return Segment(
            tokens=tokens,
            type_ids=self.types,
            document=len(before),
            score=len(tokens) - 1 if self.last else 0,
        )


def contract_frame(contract: Contract) -> Frame:
    """The frame that a contract describes."""
    first, second = contract.types
    return Frame(
        query=contract.query,
        document=contract.document,
        prefix=tuple(contract.prefix),
        middle=tuple(contract.middle),
        suffix=tuple(contract.suffix),
        types=(first, second),
        length=contract.length,
        padding=contract.padding,
        last=contract.pooling == "last token",
        passages=config.Passages(**contract.passages),
    )


def tokenizer_frame(
    tokenizer: Tokenizer,
    length: int,
    passages: config.Passages = config.ONE_PASSAGE,
) -> Frame:
    """The frame of a template, as training reads it."""
    words = tokenizer.words
    return Frame(
        query=words.query if words else "{query}",
        document=words.document if words else "{both}",
        prefix=tuple(tokenizer.head),
        middle=tuple(tokenizer.middle),
        suffix=tuple(tokenizer.tail),
        types=tokenizer.type_ids,
        length=length,
        padding=tokenizer.pad,
        last=words is not None,
        passages=passages,
    )


def own_frame(
    loaded: Any, model: config.Decoder | config.Encoder, length: int
) -> Frame:
    """The frame that a folder's own tokenizer puts around a pair of texts.

    Args:
      loaded: tokenizer of transformers.
      model: that reads it; a decoder is scored at the last token.
      length: tokens a pair; 0: the tokenizer's limit, or the model's.

    Raises:
      DataError: when the length leaves no room for two texts.
    """
    found = loaded.backend_tokenizer.encode("a", "a")
    places: list[list[int]] = [[], [], []]
    part = 0
    for token, sequence in zip(found.ids, found.sequence_ids, strict=True):
        if sequence is None:
            places[min(part, 2)].append(token)
        else:
            part = sequence + 1
    types = (0, 0)
    typed = isinstance(model, config.Encoder) and model.num_types > 1
    if typed and "token_type_ids" in loaded.model_input_names and found.ids:
        types = pair_types(found)
    positions = model.max_positions if isinstance(model, config.Encoder) else 0
    limits = [loaded.model_max_length, positions or _UNBOUNDED]
    limit = int(min(limits))
    length = length or (limit if limit < _UNBOUNDED else _DEFAULT_LENGTH)
    if positions and length > positions:
        raise DataError(
            f"length {length} is over the {positions} positions of the model; give at "
            "most that"
        )
    fixed = sum(map(len, places))
    if length < fixed + 2:
        raise DataError(
            f"length {length} leaves no room for two texts: the tokenizer puts {fixed} "
            "tokens around a pair; give a larger length"
        )
    prefix, middle, suffix = places
    pad = loaded.pad_token_id
    pad = loaded.eos_token_id if pad is None else pad
    return Frame(
        query="{query}",
        document="{both}",
        prefix=tuple(prefix),
        middle=tuple(middle),
        suffix=tuple(suffix),
        types=types,
        length=length,
        padding=0 if pad is None else pad,
        last=isinstance(model, config.Decoder),
    )


class PairEncoder:
    """Texts to rows of tokens, by a frame."""

    def __init__(self, frame: Frame, backend: Any):
        """Takes a `tokenizers.Tokenizer`, and turns its own cutting and padding off."""
        backend.no_truncation()
        backend.no_padding()
        self.frame, self.backend = frame, backend

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        found = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids for one in found]

    def query(self, text: str) -> list[int]:
        """Ids of a query, without what stands around it."""
        return self._encode([self.frame.query_text(text)])[0]

    def queries(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of queries, without what stands around them."""
        return self._encode([self.frame.query_text(text) for text in texts])

    def documents(self, documents: Sequence[PairTexts]) -> list[list[int]]:
        """Ids of documents, whole, without what stands around them."""
        return self._encode([self.frame.document_text(one) for one in documents])

    def pairs(self, pairs: Sequence[tuple[str, PairTexts]]) -> list[Segment]:
        """Rows of (query, document) pairs; each different text is tokenised once."""
        return [self.frame.segment(q, d) for q, d in self._ids(pairs)]

    def parts(
        self, pairs: Sequence[tuple[str, PairTexts]]
    ) -> tuple[list[Segment], list[int]]:
        """Rows of all passages of the pairs' documents, and how many each pair has."""
        each = [self.frame.segments(q, d) for q, d in self._ids(pairs)]
        return sum(each, []), [len(one) for one in each]

    def _ids(
        self, pairs: Sequence[tuple[str, PairTexts]]
    ) -> list[tuple[list[int], list[int]]]:
        queries = list(dict.fromkeys(query for query, _ in pairs))
        documents = list(dict.fromkeys(document for _, document in pairs))
        first = dict(zip(queries, self.queries(queries), strict=True))
        second = dict(zip(documents, self.documents(documents), strict=True))
        return [(first[q], second[d]) for q, d in pairs]

    def sizes(self, pairs: Sequence[tuple[str, PairTexts]]) -> list[int]:
        """Tokens of pairs, were they not cut."""
        first = self.queries([query for query, _ in pairs])
        second = self.documents([document for _, document in pairs])
        fixed = self.frame.fixed
        return [len(q) + len(d) + fixed for q, d in zip(first, second, strict=True)]

    def fits(self, query: str) -> bool:
        """Whether a query leaves room for a document, so that it is not cut."""
        return len(self.query(query)) < self.frame.length - self.frame.fixed

    @property
    def digest(self) -> str:
        """Digest of the tokenizer, as training's manifests have it."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()
