r"""Text to tokens: tokenizer folders, and the templates of query and document.

    prompt   [bos] "query: " QUERY "\n" | "title: " TITLE "\nsummary: " TEXT end
    pair     cls QUERY sep | TITLE TEXT sep

The bar is where the document starts; TEMPLATES has those of known rerankers, and any
text `QUERY ||| DOCUMENT ||| END` is one too (see `words_of`). `pair` puts the special
tokens that the tokenizer itself puts around a pair. Truncation cuts the document's last
tokens; never the query, and never what follows the document. A decoder is scored at its
last token, which alone has seen every other; an encoder at its first. The parts are
tokenised on their own and joined as ids, so a query costs once for all its documents.
"""

import hashlib
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers
from tokenizers import (
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from ranker import config
from ranker.data.backends import load_tokenizer
from ranker.data.records import Document
from ranker.errors import DataError

END, PAD = "</s>", "<pad>"
NO_END = "-"  # third part of a template with nothing after the document
_WORDPIECE_SPECIALS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_PRIVATE = 0xF0000  # first of the characters that no text has a meaning for


@dataclass(frozen=True)
class Segment:
    """One text as a model reads it."""

    tokens: list[int] | np.ndarray  # of int32
    type_ids: tuple[int, int]  # of the tokens before the document, and from there on
    document: int  # index of the document's first token, where language loss starts
    score: int  # index of the token that the score is read from

    @property
    def types(self) -> list[int]:
        """The type of each token."""
        first, second = self.type_ids
        behind = len(self.tokens) - self.document
        return [first] * self.document + [second] * behind


@dataclass(frozen=True)
class Words:
    """A decoder's template: the words around a query and a document."""

    query: str  # {query}
    document: str  # {title}, {text}; {both}: those that are not empty
    begin: str = ""  # before the query, with special tokens
    middle: str = ""  # between the two, tokenised on its own
    # Behind the document, each tokenised on its own; empty: the end token, if `closed`.
    # The score is read from the last token.
    end: tuple[str, ...] = ()
    closed: bool = True  # something follows the document
    bos: bool = True  # begins with the tokenizer's bos token, if it has one
    # What the model answers: the score is the logit of the first, less the second's.
    # More than two are grades from 0 on: the score is the expected grade.
    answers: tuple[str, ...] = ()


_CHAT_START, _CHAT_END = "<|im_start|>", "<|im_end|>\n"
TEMPLATES = {
    "prompt": Words("query: {query}\n", "title: {title}\nsummary: {text}"),
    # Ours: five grades, as judgements have them (see GradeHead in models/heads.py).
    "grades": Words(
        query="Rate how well the document answers the query, from 0 (not at all) to 4 "
        "(perfectly).\nQuery: {query}\n",
        document="Document: {both}",
        end=("\nGrade: ",),
        answers=("0", "1", "2", "3", "4"),
    ),
    # https://github.com/texttron/tevatron/tree/main/examples/rankllama: no end token
    "rankllama": Words(
        query="query: {query}",
        middle="<s>",
        document="document: {title} {text}",
        closed=False,
    ),
    # https://github.com/mixedbread-ai/mxbai-rerank/blob/main/mxbai_rerank
    "mxbai_rerank_v2": Words(
        begin=f"{_CHAT_START}system\nYou are Qwen, created by Alibaba Cloud. You are a "
        f"helpful assistant.{_CHAT_END}{_CHAT_START}user\n",
        query="query: {query}",
        middle="\n",
        document="document: {both}",
        end=(
            "\n",
            "You are a search relevance expert who evaluates how well documents match "
            "search queries. For each query-document pair, carefully analyze the "
            "semantic relationship between them, then provide your binary relevance "
            "judgment (0 for not relevant, 1 for relevant).\nRelevance:",
            f"{_CHAT_END}{_CHAT_START}assistant\n",
        ),
        bos=False,
        answers=("1", "0"),
    ),
    # https://huggingface.co/zeroentropy/zerank-2: the score is divided by 5 there
    "zerank_2": Words(
        begin=f"{_CHAT_START}system\n",
        query="{query}",
        middle=f"{_CHAT_END}{_CHAT_START}user\n",
        document="{both}",
        end=(f"{_CHAT_END}{_CHAT_START}assistant\n",),
        bos=False,
        answers=("Yes",),
    ),
    # https://huggingface.co/Qwen/Qwen3-Reranker-0.6B
    "qwen3_reranker": Words(
        begin="<|im_start|>system\nJudge whether the Document meets the requirements "
        "based on the Query and the Instruct provided. Note that the answer can only "
        'be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
        query="<Instruct>: Given a web search query, retrieve relevant passages that "
        "answer the query\n<Query>: {query}\n<Document>:",
        document=" {both}",
        end=("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",),
        bos=False,
        answers=("yes", "no"),
    ),
    # https://huggingface.co/BAAI/bge-reranker-v2-gemma
    "bge_reranker_gemma": Words(
        query="A: {query}",
        middle="\n",
        document="B: {both}",
        end=(
            "\n",
            "Given a query A and a passage B, determine whether the passage contains "
            "an answer to the query by providing a prediction of either 'Yes' or 'No'.",
        ),
        answers=("Yes",),
    ),
}


def words_of(template: str) -> Words | None:
    """The words of a template; None for "pair", which has none.

    A template that has no name is its words, `QUERY ||| DOCUMENT ||| END`: {query} in
    the first part, {title} and {text}, or {both}, in the second; the third may be
    empty, and stands for the end token then, or `-`, and nothing follows the document.
    """
    if config.TEMPLATE_BAR in template:
        query, document, end = template.split(config.TEMPLATE_BAR)
        if end.strip() == NO_END:
            return Words(query, document, closed=False)
        return Words(query, document, end=(end,) if end else ())
    return TEMPLATES.get(template)


def answers_of(template: str) -> tuple[str, ...]:
    """The words that a template asks a model to answer with, if it does."""
    words = words_of(template)
    return words.answers if words else ()


class Tokenizer:
    """A Hugging Face tokenizer folder and the ids that its template needs.

    Attributes:
      head: ids before the query.
      middle: ids between query and document.
      tail: ids after the document, never cut.
      type_ids: token types of the parts before and after the bar.
      pad: id that rows are filled up with.
    """

    def __init__(self, path: str | pathlib.Path, template: config.Template):
        """Loads a folder or a hub name.

        Raises:
          DataError: when it cannot be loaded, or cannot serve the template.
        """
        self.template: config.Template = template
        local = pathlib.Path(path).is_dir()
        if not local and str(path).count("/") != 1:
            raise DataError(
                f"{path}: no such folder; a tokenizer is a Hugging Face folder with "
                "tokenizer.json, or leave the setting empty to have one trained"
            )
        loaded = load_tokenizer(path)
        self.loaded = loaded
        self.backend: tokenizers.Tokenizer = loaded.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        self.digest = hashlib.sha256(self.backend.to_str().encode()).hexdigest()
        # Ids may have holes, so the largest counts, not how many there are.
        self.vocab_size = max(self.backend.get_vocab().values(), default=-1) + 1
        words = words_of(template)
        needed = [] if words and (words.end or not words.closed) else ["eos"]
        for name in ["cls", "sep", "pad"] if words is None else needed:
            if getattr(loaded, f"{name}_token_id") is None:
                raise DataError(
                    f"{path}: the tokenizer has no {name}_token, which the template "
                    f"{template!r} needs; set {name}_token in tokenizer_config.json to "
                    "one of its tokens"
                )
        self.words = words
        self.type_ids = (0, 1)
        if words is None:
            self.head, self.middle, self.tail, self.type_ids = self._pair(path)
        else:
            bos = loaded.bos_token_id if words.bos else None
            self.head = [] if bos is None else [bos]
            self.head += self._encode([words.begin])[0]
            self.middle = self._encode([words.middle])[0]
            self.tail = sum(self._encode(words.end), [])
            if words.closed and not self.tail:
                self.tail = [loaded.eos_token_id]
        pad = loaded.pad_token_id
        if pad is None:  # rows are masked, so that any token does
            pad = self.tail[-1] if self.tail else (loaded.eos_token_id or 0)
        self.pad: int = pad

    def _pair(
        self, path: str | pathlib.Path
    ) -> tuple[list[int], list[int], list[int], tuple[int, int]]:
        """What the tokenizer puts before, between and after the texts of a pair."""
        found = self.backend.encode("a", "a")
        places: list[list[int]] = [[], [], []]
        part = 0
        for token, sequence in zip(found.ids, found.sequence_ids, strict=True):
            if sequence is None:
                places[min(part, 2)].append(token)
            else:
                part = sequence + 1
        head, middle, tail = places
        if not head or not middle or not tail:
            raise DataError(
                f"{path}: the tokenizer puts no special tokens around a pair of texts, "
                "which the template 'pair' needs; it is a decoder's, or its "
                "post-processor is missing from tokenizer.json"
            )
        types = (0, 0)  # what stock tools give where they are not asked for
        if "token_type_ids" in self.loaded.model_input_names:
            types = pair_types(found)
        return head, middle, tail, types

    @property
    def template_digest(self) -> str:
        """Digest of the template, for manifests."""
        parts = (self.template, self.words, self.head, self.middle, self.tail)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [
            encoding.ids
            for encoding in self.backend.encode_batch_fast(
                list(texts), add_special_tokens=False
            )
        ]

    def queries(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of the part before the bar, for each query."""
        if self.words is not None:
            texts = [self.words.query.format(query=text) for text in texts]
        return [self.head + ids + self.middle for ids in self._encode(texts)]

    def documents(self, documents: Sequence[Document]) -> list[list[int]]:
        """Token ids of the part after the bar, for each document, without its end."""
        return self._encode([document_text(doc, self.template) for doc in documents])

    def segment(self, query: list[int], document: list[int], length: int) -> Segment:
        """Joins the two parts into at most `length` tokens; cuts the document.

        Raises:
          DataError: when the query alone leaves no room for a document's first token.
        """
        room = length - len(query) - len(self.tail)
        if room < 1:
            raise DataError(
                f"a query has {len(query)} tokens with its template, {len(self.tail)} "
                f"follow the document, but the length is {length}: no room for a "
                "document; raise text.teacher_length or text.student_length"
            )
        tokens = [*query, *document[:room], *self.tail]
        return Segment(
            tokens=tokens,
            type_ids=self.type_ids,
            document=len(query),
            score=0 if self.words is None else len(tokens) - 1,
        )


def pair_types(found: tokenizers.Encoding) -> tuple[int, int]:
    """Token types of an encoded pair: before its second text, and from there on.

    Raises:
      DataError: where they change elsewhere, which rows here do not.
    """
    ids, parts = found.type_ids, found.sequence_ids
    second = parts.index(1) if 1 in parts else len(ids)
    if len(set(ids[:second])) > 1 or len(set(ids[second:])) > 1:
        raise DataError(
            f"the tokenizer gives the tokens of a pair the types {ids}, and what can "
            "be read is one type before the second text and one from there on; set "
            "them so in the post-processor of tokenizer.json, and train with that"
        )
    return ids[0], ids[-1]


def document_text(document: Document, template: config.Template) -> str:
    """The document as one string, as the template has it."""
    words = words_of(template)
    title, text = document.title, document.text
    both = f"{title} {text}".strip()
    if words is None:
        return both
    return words.document.format(title=title, text=text, both=both)


def train_bpe(texts: Iterable[str], vocab_size: int, folder: pathlib.Path) -> None:
    """Trains a byte-level BPE for a decoder and saves it as a Hugging Face folder."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    _save(tokenizer, folder, {"pad_token": PAD, "eos_token": END}, types=False)


def train_wordpiece(
    texts: Iterable[str], vocab_size: int, folder: pathlib.Path
) -> None:
    """Trains a lower-case WordPiece for an encoder; saves a Hugging Face folder.

    The library's own trainer for it breaks ties by an order that changes from process
    to process. Its BPE trainer does not, and finds the same merges where a character
    inside of a word is another one than at its beginning.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    inner: dict[str, str] = {}  # character inside of a word -> private character
    spelled: dict[str, str] = {}  # word -> as it is trained on

    def spell(word: str) -> str:
        if word not in spelled:
            for c in word[1:]:
                inner.setdefault(c, chr(_PRIVATE + len(inner)))
            spelled[word] = word[0] + "".join(inner[c] for c in word[1:])
        return spelled[word]

    def words() -> Iterator[str]:
        for text in texts:
            found = splitter.pre_tokenize_str(normalizer.normalize_str(text))
            yield " ".join(spell(word) for word, _ in found)

    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_WORDPIECE_SPECIALS.values()),
        show_progress=False,
    )
    trained.train_from_iterator(words(), trainer)
    outer = {private: c for c, private in inner.items()}

    def plain(token: str) -> str:
        prefix = "##" if token[0] in outer else ""
        return prefix + "".join(outer.get(c, c) for c in token)

    vocabulary = {plain(token): i for token, i in trained.get_vocab().items()}
    tokenizer = tokenizers.Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]")  # type: ignore
    )
    tokenizer.normalizer = normalizer  # type: ignore
    tokenizer.pre_tokenizer = splitter  # type: ignore
    tokenizer.decoder = decoders.WordPiece()  # type: ignore
    tokenizer.add_special_tokens(list(_WORDPIECE_SPECIALS.values()))
    pair = [(name, tokenizer.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*pair)  # type: ignore
    _save(tokenizer, folder, _WORDPIECE_SPECIALS, types=True)


def _save(
    tokenizer: tokenizers.Tokenizer,
    folder: pathlib.Path,
    specials: dict[str, str],
    *,
    types: bool,
) -> None:
    from transformers import PreTrainedTokenizerFast

    names = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        # Stock loaders feed token types only where the folder asks for them.
        model_input_names=[*names, "token_type_ids"] if types else names,
        clean_up_tokenization_spaces=False,
        **specials,
    ).save_pretrained(str(folder))
