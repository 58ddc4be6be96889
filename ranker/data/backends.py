"""Tokenizers of Hugging Face folders, as their tokenizer.json says.

transformers 5 builds a tokenizer anew from the class that tokenizer_config.json names,
and may drop what tokenizer.json has of its own. What a model was trained with is the
file, so the file counts wherever the two differ.
"""

import json
import pathlib
from typing import Any

import tokenizers

from ranker.errors import DataError

_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Texts that tell pipelines apart: case, accents, punctuation, numbers, other scripts.
_PROBES = (
    "Cheap flights to Rome",
    "  a.b  U.S.A. -- isn't 50%%, (really?!) C++/C#\n\tnaïve Ünïcödé ½ x2y3",
    "Дешёвые билеты 東京の天気 مرحبا हिन्दी 😀 ﬁne ＦＵＬＬ",
)
PADDING = "<|padding|>"  # where a tokenizer has no special token to spare


def load_tokenizer(path: str | pathlib.Path) -> Any:
    """A tokenizer of transformers whose backend is tokenizer.json's.

    Tokens beyond the rows of the embeddings that config.json beside it speaks of are
    taken out, so that they are read as what they are made of, or as unknown. Those are
    mostly for images, and no text has them.

    Args:
      path: folder, or name on the hub.

    Raises:
      DataError: when it cannot be loaded, or has ordinary tokens beyond the embeddings.
    """
    # transformers takes seconds to import, and only this line needs it.
    from transformers import AutoTokenizer

    local = pathlib.Path(path).is_dir()
    try:
        # Code that comes with a tokenizer is never run, nor is it asked about.
        loaded = AutoTokenizer.from_pretrained(
            str(path), local_files_only=local, trust_remote_code=False
        )
    except Exception as error:  # transformers raises many kinds
        raise DataError(
            f"{path}: transformers cannot load a tokenizer from it: {error}"
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise DataError(
            f"{path}: the tokenizer has no tokenizer.json; save it with "
            "transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    own, rows = _own_backend(path, local), _rows(path, local)
    chosen = backend if own is None or same_pipeline(own, backend) else own
    if rows and _beyond(chosen, rows):
        chosen = _without(path, chosen, rows)
    return loaded if chosen is backend else _as_file(chosen, loaded)


def _find(path: str | pathlib.Path, name: str, local: bool) -> pathlib.Path | None:
    """A file of a folder, or of a hub name that has been fetched."""
    if local:
        found = pathlib.Path(path) / name
        return found if found.is_file() else None
    from transformers.utils.hub import cached_file

    found = cached_file(str(path), name, _raise_exceptions_for_missing_entries=False)
    return pathlib.Path(found) if found else None


def _own_backend(path: str | pathlib.Path, local: bool) -> tokenizers.Tokenizer | None:
    found = _find(path, "tokenizer.json", local)
    if found is None:
        return None
    try:
        own = tokenizers.Tokenizer.from_file(str(found))
    except Exception as error:  # the library raises bare Exceptions
        raise DataError(f"{found}: cannot be read: {error}; fetch it again") from error
    own.no_truncation()
    own.no_padding()
    return own


def _rows(path: str | pathlib.Path, local: bool) -> int:
    """Rows of the embeddings of the model in the same place; 0: none is there."""
    found = _find(path, "config.json", local)
    try:
        fields = json.loads(found.read_bytes()) if found else {}
        inner = fields.get("text_config") or {}
        rows = inner.get("vocab_size", fields.get("vocab_size", 0))
    except (ValueError, AttributeError):  # the model's reader says what is wrong
        return 0
    return rows if isinstance(rows, int) else 0


def same_pipeline(own: tokenizers.Tokenizer, other: tokenizers.Tokenizer) -> bool:
    """Whether two tokenizers are built alike and split a few telling texts alike.

    A file without a post-processor says nothing of pairs, so the other's is no
    difference.
    """
    for name in ("normalizer", "pre_tokenizer", "post_processor"):
        ours, theirs = _state(getattr(own, name)), _state(getattr(other, name))
        if ours != theirs and not (name == "post_processor" and ours is None):
            return False
    if type(own.model) is not type(other.model):
        return False
    if own.get_vocab_size(False) != other.get_vocab_size(False):
        return False
    return all(
        own.encode(text, add_special_tokens=False).ids
        == other.encode(text, add_special_tokens=False).ids
        for text in _PROBES
    )


def _state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _beyond(backend: tokenizers.Tokenizer, rows: int) -> bool:
    return max(backend.get_vocab().values(), default=0) >= rows


def _without(
    path: str | pathlib.Path, backend: tokenizers.Tokenizer, rows: int
) -> tokenizers.Tokenizer:
    """The tokenizer without its tokens beyond the embeddings."""
    described = json.loads(backend.to_str())
    added = described["added_tokens"]
    described["added_tokens"] = [one for one in added if one["id"] < rows]
    model, apart = described["model"], {one["content"] for one in added}
    if model["type"] in ("WordLevel", "WordPiece"):
        model["vocab"] = {t: i for t, i in model["vocab"].items() if i < rows}
    else:
        words = backend.get_vocab(False)
        far = sorted(t for t, i in words.items() if i >= rows and t not in apart)
        if far:
            raise DataError(
                f"{path}: the tokenizer has {len(far)} words, such as {far[0]!r}, with "
                f"ids from {rows} on, but the model has embeddings for {rows}; the "
                "tokenizer belongs to another model"
            )
    return tokenizers.Tokenizer.from_str(json.dumps(described))


def _as_file(own: tokenizers.Tokenizer, loaded: Any) -> Any:
    """A tokenizer of transformers around a backend, with what `loaded` declares."""
    from transformers import PreTrainedTokenizerFast

    names = {f"{role}_token": getattr(loaded, f"{role}_token") for role in _ROLES}
    known = {
        name: str(token)
        for name, token in names.items()
        if token is not None and own.token_to_id(str(token)) is not None
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=own,
        model_input_names=list(loaded.model_input_names),
        model_max_length=loaded.model_max_length,
        padding_side=loaded.padding_side,
        truncation_side=loaded.truncation_side,
        clean_up_tokenization_spaces=False,
        chat_template=getattr(loaded, "chat_template", None),
        **known,
    )


def choose_padding(
    backend: tokenizers.Tokenizer, taken: tuple[int, ...], rows: int
) -> int:
    """The id of a token to pad with: a special one that no text can have.

    An ordinary word would be split off before all others once it is declared, and texts
    that have it would be read otherwise than in training. Without a special token to
    spare, one is added after the last.

    Args:
      backend: may get a new token.
      taken: ids that end a text; padding must differ from them.
      rows: of the embeddings.

    Raises:
      DataError: when there is none, and no row is left for a new one.
    """
    special = {
        i: token.content.lower()
        for i, token in backend.get_added_tokens_decoder().items()
        if token.special and i not in taken and i < rows
    }
    for hint in ("pad", "unk", "reserved", "unused", "mask", ""):
        for i in sorted(special):
            if hint in special[i]:
                return i
    fresh = max(backend.get_vocab().values(), default=-1) + 1
    if fresh >= rows:
        raise DataError(
            f"the tokenizer has no special token to pad with but the one that ends a "
            f"text, and the model's {rows} embeddings are all taken; add a row to the "
            "embeddings and a pad_token to the tokenizer"
        )
    backend.add_special_tokens([tokenizers.AddedToken(PADDING, special=True)])
    return fresh
