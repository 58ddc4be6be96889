"""Models from Hugging Face folders: config.json, safetensors, tokenizer.

What the architectures look like is in families.py, how a folder is read in folder.py,
and how one is written in exporting.py.
"""

import dataclasses
import hashlib
import math
import pathlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from ranker import config
from ranker.errors import ModelError
from ranker.models.exporting import export_huggingface
from ranker.models.families import FAMILIES, Family, read_config, table_of
from ranker.models.fields import check_rest
from ranker.models.folder import (
    Described,
    Held,
    ModuleHead,
    Tensor,
    Tensors,
    find_tensors,
    read_folder,
    read_head,
    resolve_folder,
)
from ranker.models.params import flat
from ranker.models.tables import Entry, HeadNames, Index, Transformer

__all__ = ["ModelError", "export_huggingface", "flat", "open_checkpoint"]

# --- import ---


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder whose weights can be read."""

    folder: pathlib.Path
    model: Transformer
    vocab_size: int  # rows of the embeddings
    num_layers: int  # of the source
    kept: tuple[int, ...]  # layers of the source, one for each of the model's
    fresh_head: bool
    score_tokens: tuple[int, ...]  # ids; empty: the score has weights of its own
    tensors: Tensors  # by the names that they have in a whole model
    names: HeadNames  # of the score's tensors
    notes: list[str]  # what the fields and the head say that is worth a line
    digest: str  # of config.json, and of names, shapes and some numbers of tensors

    @property
    def halves(self) -> bool:
        """Whether all weights are bfloat16 in the files, so that it loses nothing."""
        read = [one for one in self.tensors.values() if isinstance(one, Tensor)]
        return all(one.dtype in ("BF16", "I64") for one in read)

    @property
    def gib(self) -> float:
        """Size of the tensors in the files."""
        widths = {"BF16": 2, "F16": 2, "F32": 4}
        return sum(
            math.prod(one.shape) * widths.get(one.dtype, 8)
            for one in self.tensors.values()
        ) / (1 << 30)

    def match(self, head: str) -> "Match":
        """Which tensor each parameter of a model with `head` comes from."""
        return match_tensors(self, head)


@dataclass(frozen=True)
class Match:
    """What is read for each parameter, and what is not read."""

    entries: dict[str, tuple[Entry, list[str | None]]]  # ours -> source of each layer
    notes: list[str]  # tensors ignored, parameters that start fresh

    @property
    def scores(self) -> bool:
        """Whether the checkpoint can score without training."""
        return "head.dense" in self.entries


def open_checkpoint(
    settings: config.Pretrained, template_tokens: tuple[str, ...] = ()
) -> Checkpoint:
    """Reads what a checkpoint holds, without its weights.

    Args:
      settings: where it is, and what is taken of it.
      template_tokens: words that a template asks the model to answer with; they score
        where neither the settings nor the checkpoint say how. One or two are the words
        of `score_tokens`, more are grades from 0 on.

    Raises:
      ModelError: for missing or broken files and unknown architectures, naming them.
    """
    folder = resolve_folder(settings.path, settings.revision)
    try:
        found = read_folder(folder)
        path, model, notes = found.path, *_model_of(found)
    except ModelError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise ModelError(
            f"{folder / 'config.json'}: a field has a value that no model of the kind "
            f"has ({error!r})"
        ) from error
    head = read_head(folder)
    family = FAMILIES[model.family]
    tensors, digest = find_tensors(folder)
    tensors = _whole_names(tensors, family) | head.tensors
    model, names = _with_head(model, family, head)
    try:
        num_layers, kept = model.num_layers, settings.kept(model.num_layers)
        model = _adapted(model, settings, kept)
    except config.ConfigError as error:
        raise ModelError(f"{path}: {error}") from error
    scorer = _Scorer(folder, model, tensors, names, settings, head, template_tokens)
    model, tensors, said, tokens = scorer.found()
    text = path.read_bytes() + repr((head.tokens, head.digest)).encode()
    return Checkpoint(
        folder=folder,
        model=model,
        vocab_size=found.fields["vocab_size"],
        num_layers=num_layers,
        kept=kept,
        fresh_head=settings.fresh_head,
        score_tokens=tokens,
        tensors=tensors,
        names=names,
        notes=[*found.notes, *notes, *said],
        digest=hashlib.sha256(text + digest.encode()).hexdigest(),
    )


def _model_of(found: Described) -> tuple[Transformer, list[str]]:
    """The model that a config.json describes, and notes on its fields."""
    model, seen = read_config(str(found.path), found.fields)
    harmless = FAMILIES[model.family].harmless
    notes = check_rest(seen, found.written, found.defaults, harmless)
    if isinstance(model, config.Encoder) and model.distance_buckets:
        notes.append(_BIASED)
    return model, notes


_BIASED = (
    "attention has learned biases by distance, which the plain kernel (xla) alone "
    "adds, on every device; its memory grows with the square of a row's tokens"
)


def _with_head(
    model: Transformer, family: Family, head: ModuleHead
) -> tuple[Transformer, HeadNames]:
    """The model with the head that modules.json describes, if it does."""
    if head.names is None:
        return model, family.head
    changes: dict[str, Any] = dict(
        pooling=head.pooling,
        head_activation=head.activation,
        head_bias=head.biased[1],
    )
    if head.grades:
        if isinstance(model, config.Encoder):
            raise ModelError(
                f"{family.name}: a head of grades (modules with a Softmax) can be read "
                "on a decoder alone"
            )
        changes["grades"] = head.grades
    elif isinstance(model, config.Encoder):
        changes |= dict(head_norm=head.normed, pooler_bias=head.biased[0])
    elif head.normed or (head.activation != "none" and not head.biased[0]):
        raise ModelError(
            f"{family.name}: a head of modules with a LayerNorm, or a Dense without a "
            "bias, can be read after an encoder only"
        )
    return dataclasses.replace(model, **changes), head.names


def _adapted(
    model: Transformer, settings: config.Pretrained, kept: tuple[int, ...]
) -> Transformer:
    """The model with the settings' dtype, dropout, pooling and layers."""
    changes: dict[str, Any] = dict(
        dtype=settings.dtype, remat=settings.remat, reduce_dtype=settings.reduce_dtype
    )
    if settings.pooling:
        changes["pooling"] = settings.pooling
    if settings.dropout >= 0:
        if isinstance(model, config.Decoder):
            raise config.ConfigError(
                "model.dropout is for encoders; a decoder has none"
            )
        changes["dropout"] = settings.dropout
    if settings.attention_dropout:
        if isinstance(model, config.Decoder):
            raise config.ConfigError(
                "model.attention_dropout is for encoders; a decoder has none"
            )
        changes["attention_dropout"] = settings.attention_dropout
    if len(kept) < model.num_layers:

        def moved(layers: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(i for i, layer in enumerate(kept) if layer in layers)

        local = moved(model.local_layers)
        changes |= dict(num_layers=len(kept), local_layers=local)
        changes["window"] = model.window if local else 0
        if isinstance(model, config.Decoder):
            changes["unrotated_layers"] = moved(model.unrotated_layers)
    return dataclasses.replace(model, **changes)


# The text model inside one that also reads images, in older and newer files.
_NESTED = (("language_model.", ""), ("model.language_model.", "model."))
# Names that releases before 2019 gave the parameters of a norm.
_OLD_NORMS = (
    ("LayerNorm.gamma", "LayerNorm.weight"),
    ("LayerNorm.beta", "LayerNorm.bias"),
)


def _whole_names(tensors: Tensors, family: Family) -> Tensors:
    """Tensors by the names that they have in a model with a head, of text alone."""
    for nested, plain in _NESTED:
        if any(name.startswith(nested) for name in tensors):
            inside = {n: t for n, t in tensors.items() if n.startswith(nested)}
            outside = {n: t for n, t in tensors.items() if n not in inside}
            renamed = {plain + n[len(nested) :]: t for n, t in inside.items()}
            tensors = outside | renamed
            break
    today: Tensors = {}
    for name, one in tensors.items():
        today |= _renamed(name, one, family)
    if any(name.startswith(family.root) for name in today):
        return today
    # A bare body is saved without the prefix that it has under a head.
    return {
        name if family.is_head(name) else family.root + name: one
        for name, one in today.items()
    }


def _renamed(name: str, one: Tensor | Held, family: Family) -> Tensors:
    """A tensor by its name of today; its parts, where they are tensors of their own."""
    for old, new in _OLD_NORMS:
        if name.endswith(old):
            name = name.removesuffix(old) + new
    split: tuple[str, tuple[str, ...]] | None = None
    for pattern, names in family.renames:
        if len(names) == 1:
            name = re.sub(pattern, names[0], name)
        elif re.search(pattern, name):
            split = pattern, names
    if split is None or not isinstance(one, Tensor):
        return {name: one}
    rows = one.shape[0] // len(split[1])
    shape = (rows, *one.shape[1:])
    return {
        re.sub(split[0], part, name): dataclasses.replace(
            one, shape=shape, first=place * rows
        )
        for place, part in enumerate(split[1])
    }


@dataclass(frozen=True)
class _Scorer:
    """What a checkpoint scores by: its head, a difference of labels, or its words."""

    folder: pathlib.Path
    model: Transformer
    tensors: Tensors
    names: HeadNames
    settings: config.Pretrained
    head: ModuleHead
    template_tokens: tuple[str, ...]

    def found(self) -> tuple[Transformer, Tensors, list[str], tuple[int, ...]]:
        """The model, its tensors with those that score, notes, and ids of words."""
        model, tensors, notes = _own_words(self.model, self.tensors)
        ids, grades = self._tokens()
        if ids:
            model, made, note = self._from_words(model, tensors, ids, grades)
            return model, {**tensors, **made}, [*notes, note], ids
        weight = f"{self.names.dense}.weight"
        if isinstance(model, config.Decoder) and self.head.names is None:
            biased = f"{self.names.dense}.bias" in tensors
            model = dataclasses.replace(model, head_bias=model.head_bias or biased)
        tensors, said = self._without_bias(model, tensors)
        notes = [*notes, *said]
        labels = tensors.get(weight)
        if isinstance(model, config.Decoder) and self.head.grades and labels:
            # A module has the scale of the model's logits in its weights.
            value = labels.read().astype(np.float32) / np.float32(model.logit_scale)
            return model, {**tensors, weight: Held(value)}, notes, ()
        if labels is None or labels.shape[:1] != (2,) or self.settings.fresh_head:
            return model, tensors, notes, ()
        tensors = {**tensors, **self._difference(tensors)}
        return model, tensors, [*notes, self._say_labels()], ()

    def _tokens(self) -> tuple[tuple[int, ...], bool]:
        """Ids of the words that score, and whether they are grades."""
        settings, scored = self.settings, f"{self.names.dense}.weight" in self.tensors
        if settings.grade_tokens:
            return _token_ids(self.folder, settings.grade_tokens, "grade_tokens"), True
        if settings.score_tokens:
            return _token_ids(self.folder, settings.score_tokens, "score_tokens"), False
        if self.head.tokens:
            return self.head.tokens, False
        silent = not scored and isinstance(self.model, config.Decoder)
        if silent and self.template_tokens and not settings.fresh_head:
            words = self.template_tokens
            return _token_ids(self.folder, words, "score_tokens"), len(words) > 2
        return (), False

    def _from_words(
        self, model: Transformer, tensors: Tensors, ids: tuple[int, ...], grades: bool
    ) -> tuple[Transformer, Tensors, str]:
        """The score's weights are rows of the words' logits."""
        model = _check_logits(self.folder, model, ids, grades)
        name = "lm_head.weight"
        if model.tie_embeddings or name not in tensors:
            name = "model.embed_tokens.weight"
        if name not in tensors:
            raise ModelError(f"{self.folder}: {name}: missing")
        source = tensors[name]
        if max(ids) >= source.shape[0]:
            raise ModelError(
                f"{self.folder}: the words that score are the tokens {ids}, and {name} "
                f"has {source.shape[0]} rows"
            )
        rows = [
            source.read((slice(i, i + 1), slice(0, source.shape[1])))[0] for i in ids
        ]
        rows = [row.astype(np.float32) for row in rows]
        said = " less ".join(map(str, ids))
        if grades:
            weight = np.stack(rows)
            model = dataclasses.replace(model, grades=len(ids), head_bias=False)
            note = f"the score is the expected grade over the tokens {ids}"
        else:
            weight = (rows[0] - rows[1] if len(rows) > 1 else rows[0])[None]
            weight = weight * np.float32(model.logit_scale)
            model = dataclasses.replace(model, head_bias=False)
            note = f"the score is the logit of token {said}"
        return model, {f"{self.names.dense}.weight": Held(weight)}, note

    def _without_bias(
        self, model: Transformer, tensors: Tensors
    ) -> tuple[Tensors, list]:
        """Zeros for a bias that a head without one leaves out."""
        weight = f"{self.names.dense}.weight"
        if isinstance(model, config.Decoder) or weight not in tensors:
            return tensors, []
        made: Tensors = {}
        if model.head_bias and f"{self.names.dense}.bias" not in tensors:
            rows = tensors[weight].shape[:1]
            made[f"{self.names.dense}.bias"] = Held(np.zeros(rows, np.float32))
        pooler = f"{self.names.pooler}.weight"
        biased = model.bias and model.pooler_bias and pooler in tensors
        if biased and f"{self.names.pooler}.bias" not in tensors:
            rows = tensors[pooler].shape[:1]
            made[f"{self.names.pooler}.bias"] = Held(np.zeros(rows, np.float32))
        return {**tensors, **made}, [f"{name}: not there, read as 0" for name in made]

    def _difference(self, tensors: Tensors) -> Tensors:
        """Of a classifier of two labels: the second's logit less the first's."""
        made: Tensors = {}
        for part in ("weight", "bias"):
            name = f"{self.names.dense}.{part}"
            if name in tensors:
                both = tensors[name].read().astype(np.float32)
                made[name] = Held(both[1:] - both[:1])
        return made

    def _say_labels(self) -> str:
        return (
            "a head of 2 labels: the score is the second's logit less the first's "
            "(model.fresh_head=True begins with a new one)"
        )


def _own_words(
    model: Transformer, tensors: Tensors
) -> tuple[Transformer, Tensors, list[str]]:
    """A decoder with the head that its file has, whatever tie_word_embeddings says.

    transformers does not tie two tensors that are both there and differ.
    """
    head, table = (
        tensors.get("lm_head.weight"),
        tensors.get("model.embed_tokens.weight"),
    )
    if not isinstance(model, config.Decoder) or not model.causal:
        return model, tensors, []
    if not model.tie_embeddings or head is None or table is None:
        return model, tensors, []
    if head.shape == table.shape and _alike(head, table):
        return model, tensors, []
    note = (
        "lm_head.weight differs from the embeddings, so it is read, and "
        "tie_word_embeddings is not followed, as transformers does it"
    )
    return dataclasses.replace(model, tie_embeddings=False), tensors, [note]


def _alike(a: Tensor | Held, b: Tensor | Held) -> bool:
    """Whether some rows of two tensors of one shape are equal."""
    rows, width = a.shape
    for start in np.linspace(0, max(rows - 4, 0), 8, dtype=int):
        index = (slice(int(start), min(int(start) + 4, rows)), slice(0, width))
        ours, theirs = (one.read(index).astype(np.float32) for one in (a, b))
        if not np.array_equal(ours, theirs):
            return False
    return True


def _token_ids(
    folder: pathlib.Path, words: tuple[str, ...], setting: str
) -> tuple[int, ...]:
    import tokenizers

    path = folder / "tokenizer.json"
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise ModelError(f"{path}: cannot be read: {error}") from error
    ids = []
    for word in words:
        found = tokenizer.token_to_id(word)
        if found is None:
            vocabulary = tokenizer.get_vocab()
            near = [t for t in vocabulary if t.strip("▁Ġ ").lower() == word.lower()]
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ModelError(f"{path}: model.{setting}: no token {word!r}{hint}")
        ids.append(found)
    return tuple(ids)


def _check_logits(
    folder: pathlib.Path, model: Transformer, ids: tuple[int, ...], grades: bool
) -> config.Decoder:
    if isinstance(model, config.Encoder):
        raise ModelError(
            f"{folder}: the score is the logit of a token (model.score_tokens), which "
            "takes a decoder, and this is an encoder"
        )
    if model.logit_cap and len(ids) > 1 and not grades:
        raise ModelError(
            f"{folder}: model.score_tokens of two tokens needs plain logits, and this "
            f"model bounds its logits at {model.logit_cap}; name one token"
        )
    return model


def match_tensors(checkpoint: Checkpoint, head: str) -> Match:
    """Which source tensor each parameter comes from, by names and shapes alone.

    Raises:
      ModelError: listing every tensor that is missing, unknown or of another shape.
    """
    model, family = checkpoint.model, FAMILIES[checkpoint.model.family]
    shapes = {name: one.shape for name, one in checkpoint.tensors.items()}
    entries: dict[str, tuple[Entry, list[str | None]]] = {}
    used: set[str] = set()
    notes, problems = list(checkpoint.notes), []
    table = table_of(model, checkpoint.vocab_size, head, checkpoint.names)
    for entry in table:
        last = entry.ours in ("head.dense", "head.bias")
        if last and checkpoint.fresh_head:
            notes.append(f"{entry.ours}: starts fresh (model.fresh_head)")
            continue
        layers = checkpoint.kept if entry.stacked else (0,)
        names = [entry.source.format(i=i) for i in layers]
        found = [name for name in names if name in shapes]
        used |= set(found)
        if not found and entry.ours.startswith("head.") and head == "score":
            notes.append(f"{entry.ours}: not in the checkpoint, starts fresh")
            continue
        problems += [
            f"{name}: missing"
            for name in names
            if name not in shapes and name not in family.absent
        ]
        problems += [
            _say_shape(name, shapes[name], entry, last)
            for name in found
            if shapes[name] != entry.source_shape
        ]
        sources = [name if name in shapes else None for name in names]
        entries[entry.ours] = (entry, sources)
    if head == "score":
        notes += _drop_parts(entries, {entry.ours for entry in table})
    more, unknown = _leftovers(checkpoint, set(shapes) - used)
    if problems or unknown:
        said = "; ".join(dict.fromkeys([*problems, *unknown]))
        raise ModelError(f"{checkpoint.folder}: {said}")
    return Match(entries, notes + more)


def _leftovers(checkpoint: Checkpoint, names: set[str]) -> tuple[list[str], list[str]]:
    """Notes on tensors that are not read, and problems with those that are unknown."""
    family = FAMILIES[checkpoint.model.family]
    in_layer = re.compile(r"\blayers?\.(\d+)\.")
    left_out = set(range(checkpoint.num_layers)) - set(checkpoint.kept)
    notes, problems, dropped = [], [], 0
    for name in sorted(names):
        layer = in_layer.search(name)
        if family.ignored(name):
            notes.append(f"{name}: ignored")
        elif layer and int(layer[1]) in left_out:
            dropped += 1
        else:
            problems.append(f"{name}: unknown")
    if dropped:
        kept = ", ".join(map(str, checkpoint.kept))
        notes.append(f"layers {kept} are kept; {dropped} tensors of others: ignored")
        if family.absent and checkpoint.kept[0] != 0:
            notes.append(
                f"layer {checkpoint.kept[0]} comes first, so its attention reads the "
                "embeddings without the norm before it, as a first layer does here"
            )
    return notes, problems


def _drop_parts(
    entries: dict[str, tuple[Entry, list[str | None]]], wanted: set[str]
) -> list[str]:
    """Has a score begin anew where what it was trained behind is not there; notes."""
    kept = {path for path in entries if path.startswith("head.")}
    behind = {"head.pooler", "head.norm"}
    lost = [path for path in sorted(behind & wanted) if path not in kept]
    if not lost or "head.dense" not in kept:
        return []
    for path in ("head.dense", "head.bias"):
        entries.pop(path, None)
    return [f"head.dense: starts fresh, since it was trained with {', '.join(lost)}"]


def _say_shape(name: str, found: tuple[int, ...], entry: Entry, last: bool) -> str:
    message = f"{name}: shape {found}, expected {entry.source_shape}"
    if last and found and found[0] != 1:
        message += (
            f" (a head of {found[0]} labels, and a ranker gives one score; "
            "model.fresh_head=True begins with a new one)"
        )
    return message


def import_params(
    checkpoint: Checkpoint,
    head: str,
    abstract: Any,
    shardings: Any,
) -> tuple[dict[str, jax.Array], list[str]]:
    """The checkpoint's parameters, each device reading only its own slice.

    At no time is there more on the host than one device's slice of one parameter.

    Args:
      checkpoint: from `open_checkpoint`.
      head: "language" or "score".
      abstract: `nnx.State` of the shapes and dtypes of a model with that head.
      shardings: of the same structure.

    Returns:
      Parameters by dotted path, without those of a head that the checkpoint lacks; and
      what was ignored or left out, for the log.

    Raises:
      ModelError: listing every tensor that is missing, unknown or of another shape.
    """
    match = checkpoint.match(head)
    where = dict(flat(shardings))
    params: dict[str, jax.Array] = {}
    for path, leaf in flat(abstract):
        if path in match.entries:
            read = partial(_read_part, checkpoint, *match.entries[path], leaf)
            params[path] = _place(read, leaf.shape, where[path])
    return params, match.notes


def _place(
    read: Callable[[Index], np.ndarray],
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding,
) -> jax.Array:
    """An array whose slices are read and moved to their devices one after the other.

    `jax.make_array_from_callback` reads all slices before it moves any.
    """
    devices: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        parts = zip(index or (), shape, strict=True)
        bounds = tuple(part.indices(size)[:2] for part, size in parts)
        devices.setdefault(bounds, []).append(device)
    placed = []
    for bounds, copies in devices.items():
        part = read(tuple(slice(*bound) for bound in bounds))
        placed += [jax.device_put(part, device) for device in copies]
        jax.block_until_ready(placed)
    return jax.make_array_from_single_device_arrays(shape, sharding, placed)


def _read_part(
    checkpoint: Checkpoint,
    entry: Entry,
    sources: list[str | None],
    leaf: jax.ShapeDtypeStruct,
    index: Index,
) -> np.ndarray:
    """The part `index` of one of our parameters, layers in front where stacked."""

    def of(name: str | None, index: Index) -> np.ndarray:
        if name is None:
            return np.ones((), leaf.dtype)  # a norm that the source leaves out
        tensor = checkpoint.tensors[name]
        found = entry.read(lambda part: tensor.read(part).astype(np.float32), index)
        return found.astype(leaf.dtype, copy=False)

    if not entry.stacked:
        return of(sources[0], index)
    result = np.empty([part.stop - part.start for part in index], leaf.dtype)
    for place, name in enumerate(sources[index[0]]):
        result[place] = of(name, index[1:])
    return result
