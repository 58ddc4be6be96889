r"""Text to tokens: tokenizer folders, and the one template of each kind of model.

    decoder   [bos] "query: " QUERY "\n" | "title: " TITLE "\nsummary: " TEXT end
    encoder   cls QUERY sep | TITLE TEXT sep

The bar is where the document starts. Truncation cuts the document's last tokens; never
the query, and never the end token (`end`, or the last `sep`). A decoder is scored at
`end`, which alone has seen every other token; an encoder at `cls`. The parts are
tokenised on their own and joined as ids, so a query costs once for all its documents.
"""

import hashlib
import pathlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import tokenizers
from tokenizers import (
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from ranker.data.records import DataError, Document

Kind = Literal["decoder", "encoder"]

END, PAD = "</s>", "<pad>"
_WORDPIECE_SPECIALS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


@dataclass(frozen=True)
class Segment:
    """One text as a model reads it."""

    tokens: list[int]
    types: list[int]  # 0: query, 1: document
    document: int  # index of the document's first token, where language loss starts
    score: int  # index of the token that the score is read from


class Tokenizer:
    """A Hugging Face tokenizer folder and the ids that the templates need."""

    def __init__(self, folder: str | pathlib.Path, kind: Kind):
        """Loads `folder`; raises `DataError` when it cannot serve a model of `kind`."""
        # transformers takes seconds to import, and only this line needs it.
        from transformers import AutoTokenizer

        self.folder = pathlib.Path(folder)
        self.kind: Kind = kind
        if not self.folder.is_dir():
            raise DataError(
                f"{folder}: no such folder; a tokenizer is a Hugging Face folder with "
                "tokenizer.json, or leave the setting empty to have one trained"
            )
        try:
            loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # transformers raises many kinds
            raise DataError(
                f"{folder}: transformers cannot load a tokenizer from it: {error}"
            ) from error
        backend = getattr(loaded, "backend_tokenizer", None)
        if backend is None:
            raise DataError(
                f"{folder}: the tokenizer has no tokenizer.json; save it with "
                "transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
        self.backend: tokenizers.Tokenizer = backend
        self.backend.no_truncation()
        self.backend.no_padding()
        self.digest = hashlib.sha256(self.backend.to_str().encode()).hexdigest()
        self.vocab_size = len(loaded)
        wanted = ("cls", "sep", "pad") if kind == "encoder" else ("eos",)
        for name in wanted:
            if getattr(loaded, f"{name}_token_id") is None:
                raise DataError(
                    f"{folder}: the tokenizer has no {name}_token, which the {kind} "
                    "template needs; set it in tokenizer_config.json"
                )
        if kind == "encoder":
            self.head, self.end = [loaded.cls_token_id], loaded.sep_token_id
        else:
            bos = loaded.bos_token_id
            self.head = [] if bos is None else [bos]
            self.end = loaded.eos_token_id
        pad = loaded.pad_token_id
        self.pad = self.end if pad is None else pad

    @property
    def template_digest(self) -> str:
        """Digest of the template's words, for manifests."""
        return hashlib.sha256(
            repr((self.kind, _PROMPT, _TEMPLATE)).encode()
        ).hexdigest()

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [
            encoding.ids
            for encoding in self.backend.encode_batch(
                list(texts), add_special_tokens=False
            )
        ]

    def queries(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of the part before the bar, for each query."""
        if self.kind == "decoder":
            texts = [_PROMPT.format(query=text) for text in texts]
            return [self.head + ids for ids in self._encode(texts)]
        return [self.head + ids + [self.end] for ids in self._encode(texts)]

    def documents(self, documents: Sequence[Document]) -> list[list[int]]:
        """Token ids of the part behind the bar, for each document, without its end."""
        return self._encode([document_text(doc, self.kind) for doc in documents])

    def segment(self, query: list[int], document: list[int], length: int) -> Segment:
        """Joins the two parts into at most `length` tokens; cuts the document.

        Raises:
          DataError: when the query alone leaves no room for a document's first token.
        """
        room = length - len(query) - 1
        if room < 1:
            raise DataError(
                f"a query has {len(query)} tokens with its template, and the length is "
                f"{length}: no room for a document; raise text.teacher_length or "
                "text.student_length"
            )
        tokens = [*query, *document[:room], self.end]
        return Segment(
            tokens=tokens,
            types=[0] * len(query) + [1] * (len(tokens) - len(query)),
            document=len(query),
            score=0 if self.kind == "encoder" else len(tokens) - 1,
        )


_PROMPT = "query: {query}\n"
_TEMPLATE = "title: {title}\nsummary: {text}"


def document_text(document: Document, kind: Kind) -> str:
    """The document as one string, as a model of `kind` reads it."""
    if kind == "decoder":
        return _TEMPLATE.format(title=document.title, text=document.text)
    return f"{document.title} {document.text}".strip()


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
    """Trains a lower-case WordPiece for an encoder; saves a Hugging Face folder."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_WORDPIECE_SPECIALS.values()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
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
