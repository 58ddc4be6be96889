"""Models in and out of Hugging Face folders: config.json, safetensors, tokenizer.

What the architectures look like is in families.py, how a folder is read in folder.py.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from ranker import config
from ranker.errors import ModelError
from ranker.models.families import (
    ABSENT,
    SAME,
    Entry,
    Index,
    prefix_of,
    read_config,
    table_of,
    write_config,
)
from ranker.models.folder import (
    Tensors,
    find_tensors,
    read_fields,
    read_head,
    resolve_folder,
)
from ranker.storage import replacing, write_json

__all__ = ["ModelError", "export_huggingface", "open_checkpoint"]

_SHARD_BYTES = 5_000_000_000  # of one safetensors file that is written


# --- import ---


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder whose weights can be read."""

    folder: pathlib.Path
    model: config.Decoder | config.Encoder
    vocab_size: int
    num_layers: int  # of the source
    kept: tuple[int, ...]  # layers of the source, one for each of the model's
    fresh_head: bool
    score_tokens: tuple[int, ...]  # ids; empty: the score has weights of its own
    tensors: Tensors  # by the names that they have in a whole model
    digest: str  # of config.json, and of names, shapes and first numbers of tensors

    @property
    def halves(self) -> bool:
        """Whether all weights are bfloat16 in the files, so that it loses nothing."""
        return all(one.dtype in ("BF16", "I64") for one in self.tensors.values())

    @property
    def gib(self) -> float:
        """Size of the tensors in the files."""
        widths = {"BF16": 2, "F16": 2, "F32": 4}
        return sum(
            math.prod(one.shape) * widths.get(one.dtype, 8)
            for one in self.tensors.values()
        ) / (1 << 30)

    def plan(self, head: str) -> "Plan":
        """Which tensor each parameter of a model with `head` comes from."""
        return make_plan(self, head)


@dataclass(frozen=True)
class Plan:
    """What is read for each parameter, and what is not read."""

    entries: dict[str, tuple[Entry, list[str | None]]]  # ours -> source of each layer
    notes: list[str]  # tensors ignored, parameters that start fresh

    @property
    def scores(self) -> bool:
        """Whether the checkpoint can score as it is."""
        return "head.dense" in self.entries


def open_checkpoint(
    settings: config.Pretrained, template_tokens: tuple[str, ...] = ()
) -> Checkpoint:
    """Reads what a checkpoint holds, without its weights.

    Args:
      settings: where it is, and what is taken of it.
      template_tokens: words that a template asks the model to answer with; they score
        where neither the settings nor the checkpoint say how.

    Raises:
      ModelError: for missing or broken files and unknown architectures, naming them.
    """
    folder = resolve_folder(settings.path, settings.revision)
    path = folder / "config.json"
    fields = read_fields(folder)
    try:
        model = read_config(str(path), fields)
    except ModelError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise ModelError(
            f"{path}: a field has a value that no model of the kind has ({error!r})"
        ) from error
    head = read_head(folder)
    tensors, digest = find_tensors(folder)
    tensors = _whole_names(tensors, prefix_of(model.family)) | head.tensors
    if isinstance(model, config.Decoder) and "score.bias" in tensors:
        model = dataclasses.replace(model, head_bias=True)
    num_layers = model.num_layers
    try:
        kept = settings.kept(num_layers)
        model = _adapted(model, settings, kept)
    except config.ConfigError as error:
        raise ModelError(f"{path}: {error}") from error
    tokens = head.tokens
    words = settings.score_tokens
    silent = not tokens and "score.weight" not in tensors
    if not words and silent and isinstance(model, config.Decoder):
        words = template_tokens
    if words:
        tokens = _token_ids(folder, words)
    if tokens:
        _check_logits(folder, model, tokens)
    text = path.read_bytes() + repr(head.tokens).encode()
    return Checkpoint(
        folder=folder,
        model=model,
        vocab_size=fields["vocab_size"],
        num_layers=num_layers,
        kept=kept,
        fresh_head=settings.fresh_head,
        score_tokens=tokens,
        tensors=tensors,
        digest=hashlib.sha256(text + digest.encode()).hexdigest(),
    )


def _adapted(
    model: config.Decoder | config.Encoder,
    settings: config.Pretrained,
    kept: tuple[int, ...],
) -> config.Decoder | config.Encoder:
    """The model with the settings' dtype, dropout and layers."""
    changes: dict[str, Any] = dict(dtype=settings.dtype, remat=settings.remat)
    if settings.dropout >= 0:
        if isinstance(model, config.Decoder):
            raise config.ConfigError(
                "model.dropout is for encoders; a decoder has none"
            )
        changes["dropout"] = settings.dropout
    if len(kept) < model.num_layers:
        local = [i for i, layer in enumerate(kept) if layer in model.local_layers]
        changes |= dict(num_layers=len(kept), local_layers=tuple(local))
        changes["window"] = model.window if local else 0
    return dataclasses.replace(model, **changes)


_HEADS = ("score.", "lm_head.", "classifier.", "cls.", "head.", "decoder.")
# The text model inside one that also reads images, in older and newer files.
_NESTED = (("language_model.", ""), ("model.language_model.", "model."))


# Names that releases before 2019 gave the parameters of a norm.
_OLD_NAMES = (
    ("LayerNorm.gamma", "LayerNorm.weight"),
    ("LayerNorm.beta", "LayerNorm.bias"),
)


def _today(name: str) -> str:
    """The name that a tensor has in files of today."""
    for old, new in _OLD_NAMES:
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _whole_names(tensors: Tensors, prefix: str) -> Tensors:
    """Tensors by the names that they have in a model with a head, of text alone."""
    tensors = {_today(name): one for name, one in tensors.items()}
    for nested, plain in _NESTED:
        if any(name.startswith(nested) for name in tensors):
            inside = {n: t for n, t in tensors.items() if n.startswith(nested)}
            outside = {n: t for n, t in tensors.items() if n not in inside}
            renamed = {plain + n[len(nested) :]: t for n, t in inside.items()}
            return outside | renamed
    if any(name.startswith(prefix) for name in tensors):
        return tensors
    # A bare body is saved without the prefix that it has under a head.
    return {
        name if name.startswith(_HEADS) else prefix + name: one
        for name, one in tensors.items()
    }


def _token_ids(folder: pathlib.Path, words: tuple[str, ...]) -> tuple[int, ...]:
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
            raise ModelError(f"{path}: model.score_tokens: no token {word!r}{hint}")
        ids.append(found)
    return tuple(ids)


def _check_logits(
    folder: pathlib.Path, model: config.Decoder | config.Encoder, ids: tuple[int, ...]
) -> None:
    if isinstance(model, config.Encoder):
        raise ModelError(
            f"{folder}: the score is the logit of a token (model.score_tokens), which "
            "takes a decoder, and this is an encoder"
        )
    if model.logit_cap and len(ids) > 1:
        raise ModelError(
            f"{folder}: model.score_tokens of two tokens needs plain logits, and this "
            f"model bounds its logits at {model.logit_cap}; name one token"
        )


# Buffers of older releases, heads that rank nothing, and what reads images.
_IGNORED = re.compile(
    r".*(position_ids|token_type_ids|rotary_emb\.inv_freq)$"
    r"|^(cls|decoder|discriminator_predictions|generator_predictions|generator_lm_head)\."
    r"|^(score|classifier|lm_head|head)\.|^(bert|roberta)\.pooler\."
    r"|^(model\.)?(vision_tower|multi_modal_projector)\."
)


def make_plan(checkpoint: Checkpoint, head: str) -> Plan:
    """Which source tensor each parameter comes from, by names and shapes alone.

    Raises:
      ModelError: listing every tensor that is missing, unknown or of another shape.
    """
    model = checkpoint.model
    shapes = {name: one.shape for name, one in checkpoint.tensors.items()}
    entries: dict[str, tuple[Entry, list[str | None]]] = {}
    used: set[str] = set()
    notes, problems = [], []
    table = table_of(model, checkpoint.vocab_size, head)
    for entry in table:
        last = entry.ours in ("head.dense", "head.bias")
        if last and checkpoint.fresh_head:
            notes.append(f"{entry.ours}: starts fresh (model.fresh_head)")
            continue
        if checkpoint.score_tokens and entry.ours == "head.dense":
            entry = _score_entry(entry, model, checkpoint.vocab_size)
            chosen = " less ".join(map(str, checkpoint.score_tokens))
            notes.append(f"the score is the logit of token {chosen}")
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
            if name not in shapes and name not in ABSENT
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
    in_layer = re.compile(r"\blayers?\.(\d+)\.")
    left_out = set(range(checkpoint.num_layers)) - set(checkpoint.kept)
    dropped = 0
    for name in sorted(set(shapes) - used):
        layer = in_layer.search(name)
        if _IGNORED.match(name):
            notes.append(f"{name}: ignored")
        elif layer and int(layer[1]) in left_out:
            dropped += 1
        else:
            problems.append(f"{name}: unknown")
    if dropped:
        kept = ", ".join(map(str, checkpoint.kept))
        notes.append(f"layers {kept} are kept; {dropped} tensors of others: ignored")
    if problems:
        raise ModelError(f"{checkpoint.folder}: {'; '.join(dict.fromkeys(problems))}")
    return Plan(entries, notes)


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
    return [f"head.dense: starts fresh, since it was trained behind {', '.join(lost)}"]


def _say_shape(name: str, found: tuple[int, ...], entry: Entry, last: bool) -> str:
    message = f"{name}: shape {found}, expected {entry.source_shape}"
    if last and found and found[0] != 1:
        message += (
            f" (a head of {found[0]} labels, and a ranker gives one score; "
            "model.fresh_head=True begins with a new one)"
        )
    return message


def _score_entry(entry: Entry, model: Any, vocab_size: int) -> Entry:
    """The score is a logit, so its dense layer is a row of the language-model head."""
    tied = model.tie_embeddings
    source = "model.embed_tokens.weight" if tied else "lm_head.weight"
    return Entry(source, entry.ours, SAME, (vocab_size, model.embed_dim))


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
    plan = checkpoint.plan(head)
    where = dict(flat(shardings))
    params: dict[str, jax.Array] = {}
    for path, leaf in flat(abstract):
        if path in plan.entries:
            read = partial(_read_part, checkpoint, *plan.entries[path], leaf)
            params[path] = _place(read, leaf.shape, where[path])
    return params, plan.notes


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


def flat(params: Any) -> list[tuple[str, Any]]:
    """(dotted path, leaf) of an `nnx.State`."""
    leaves = nnx.traversals.flatten_mapping(nnx.to_pure_dict(params)).items()
    return [(".".join(map(str, path)), leaf) for path, leaf in leaves]


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

    if entry.ours == "head.dense" and checkpoint.score_tokens:
        rows = [
            of(sources[0], (slice(token, token + 1), *index))[0]
            for token in checkpoint.score_tokens
        ]
        return rows[0] - rows[1] if len(rows) == 2 else rows[0]
    if not entry.stacked:
        return of(sources[0], index)
    result = np.empty([part.stop - part.start for part in index], leaf.dtype)
    for place, name in enumerate(sources[index[0]]):
        result[place] = of(name, index[1:])
    return result


# --- export ---


def to_tensors(
    model: config.Decoder | config.Encoder, params: Any, head: str
) -> dict[str, np.ndarray]:
    """Our parameters as Hugging Face tensors, float32 on the host."""
    ours = {path: np.asarray(value, np.float32) for path, value in flat(params)}
    vocab_size = ours["body.embedding"].shape[0]
    parts: dict[str, list[np.ndarray]] = {}
    for entry in table_of(model, vocab_size, head):
        value = ours.pop(entry.ours)
        for i, layer in enumerate(value if entry.stacked else [value]):
            name = entry.source.format(i=i)
            if name not in ABSENT:
                parts.setdefault(name, []).append(entry.transform.to_source(layer))
    assert not ours, f"parameters without a place in the table: {sorted(ours)}"
    return {
        name: np.ascontiguousarray(np.concatenate(each) if len(each) > 1 else each[0])
        for name, each in parts.items()
    }


# Without it CrossEncoder applies a sigmoid to a single label.
_RAW_SCORES = {"activation_fn": "torch.nn.modules.linear.Identity"}


def export_huggingface(
    folder: pathlib.Path,
    model: config.Decoder | config.Encoder,
    params: Any,
    *,
    head: str,
    tokenizer: pathlib.Path,
    length: int,
) -> None:
    """Writes a model that stock tools load as it is, with one raw score.

    Args:
      folder: target; made if missing. config.json is written last, so that a folder
        that has one is whole.
      model: its config; `family` says which architecture is written.
      params: its parameters.
      head: "score", or "language" for a decoder after continued pre-training.
      tokenizer: its Hugging Face folder.
      length: tokens that stock tools are to cut a pair to.

    Raises:
      ModelError: when the family cannot express the model.
    """
    tensors = to_tensors(model, params, head)
    rows = next(v for k, v in tensors.items() if "embed" in k).shape[0]
    described = write_config(model, rows, length, head)
    _check_family(model, described)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in ("config.json", "model.safetensors.index.json"):
        (folder / stale).unlink(missing_ok=True)
    _save(folder, tensors)
    for file in sorted(tokenizer.iterdir()):
        described_elsewhere = file.name in ("config.json", "generation_config.json")
        if file.suffix in (".json", ".txt", ".model") and not described_elsewhere:
            if not file.name.endswith(".index.json"):
                shutil.copyfile(file, folder / file.name)
    amended = _amend_tokenizer(folder / "tokenizer_config.json", length, model)
    tokens = _token_fields(tokenizer, amended)
    pad = tokens.get("pad_token_id")
    if pad is None and head == "score":
        raise ModelError(
            f"{tokenizer}: the tokenizer has no padding and no end token, by which "
            "stock tools find the last token; set pad_token in tokenizer_config.json "
            "to one of its tokens"
        )
    if described.get("pad_token_id", pad) != pad:
        raise ModelError(
            f"{tokenizer}: the padding token is {pad}, and {model.family!r} counts "
            f"positions from {described['pad_token_id']}; set model.family to 'bert', "
            "which does not"
        )
    described |= {"dtype": "float32", **tokens}
    if head == "score":
        described |= {
            "id2label": {"0": "score"},
            "label2id": {"score": 0},
            "sentence_transformers": _RAW_SCORES,
        }
    write_json(folder / "config.json", described, indent=2)


def _check_family(
    model: config.Decoder | config.Encoder, described: dict[str, Any]
) -> None:
    """Refuses to write a config.json that would be read as another model."""
    from transformers import AutoConfig

    fields = {k: v for k, v in described.items() if k != "model_type"}
    full = AutoConfig.for_model(described["model_type"], **fields).to_dict()
    again = read_config("config.json", full)
    ours = config.to_dict(model)
    theirs = config.to_dict(again) | {name: ours[name] for name in ("dtype", "remat")}
    differing = [
        f"{name} {ours[name]!r} would be {theirs[name]!r}"
        for name in ours
        if not _alike(ours[name], theirs[name])
    ]
    if differing:
        raise ModelError(
            f"the family {model.family!r} cannot express this model: "
            f"{'; '.join(differing)}; set model.family or these fields so that they fit"
        )


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, int | float):
        return abs(a - b) <= 1e-6 * max(abs(a), 1e-30)
    return a == b


def _save(folder: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """One safetensors file, or several with an index where it would be large."""
    groups: list[dict[str, np.ndarray]] = [{}]
    for name, value in tensors.items():
        size = sum(one.nbytes for one in groups[-1].values())
        if groups[-1] and size + value.nbytes > _SHARD_BYTES:
            groups.append({})
        groups[-1][name] = value
    for stale in folder.glob("model*.safetensors"):
        stale.unlink()
    metadata = {"format": "pt"}
    if len(groups) == 1:
        with replacing(folder / "model.safetensors") as path:
            save_file(tensors, path, metadata=metadata)
        return
    where = {}
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        with replacing(folder / name) as path:
            save_file(group, path, metadata=metadata)
        where |= dict.fromkeys(group, name)
    total = sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    write_json(folder / "model.safetensors.index.json", index, indent=2)


def _amend_tokenizer(
    path: pathlib.Path, length: int, model: config.Decoder | config.Encoder
) -> dict[str, Any]:
    """Stock tokenizers must cut where we do and pass token types to who has them."""
    described = json.loads(path.read_text()) if path.is_file() else {}
    described["model_max_length"] = length
    names = ["input_ids", "attention_mask"]
    if isinstance(model, config.Encoder) and model.num_types > 1:
        names.insert(1, "token_type_ids")
    described["model_input_names"] = names
    write_json(path, described, indent=2)
    return described


def _token_fields(tokenizer: pathlib.Path, described: dict[str, Any]) -> dict[str, int]:
    """Ids of special tokens, which stock models read from config.json."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    fields = {}
    for name in ("pad", "bos", "eos", "cls", "sep"):
        token = described.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        found = backend.token_to_id(token) if token else None
        if found is not None:
            fields[f"{name}_token_id"] = found
    # A decoder's last real token is found by the padding behind it.
    if "pad_token_id" not in fields and "eos_token_id" in fields:
        fields["pad_token_id"] = fields["eos_token_id"]
    return fields
