"""Models in and out of Hugging Face folders: config.json, safetensors, tokenizer.

What the architectures look like is in families.py. Weights are only ever read from
safetensors, never from pickles, and no code that comes with a checkpoint is run.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ranker import config
from ranker.models.families import (
    ABSENT,
    KNOWN,
    SAME,
    Entry,
    Index,
    ModelError,
    prefix_of,
    read_config,
    table_of,
    write_config,
)

__all__ = ["ModelError", "export_huggingface", "open_checkpoint"]

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_SHARD_BYTES = 5_000_000_000  # of one safetensors file that is written


# --- import ---


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder whose weights can be read."""

    folder: pathlib.Path
    model: config.Decoder | config.Encoder
    vocab_size: int
    keep_layers: tuple[int, ...]
    score_tokens: tuple[int, ...]  # ids
    files: Mapping[str, tuple[pathlib.Path, str]]  # tensor -> file, its name there
    shapes: Mapping[str, tuple[int, ...]]  # tensor -> shape
    digest: str  # of config.json, and of the names and sizes of all tensors

    def plan(self, head: str) -> "Plan":
        """Which tensor each parameter of a model with `head` comes from."""
        return make_plan(self, head)

    def read(self, name: str, index: Index) -> np.ndarray:
        """A part of a tensor, float32.

        The file is opened for each part: a map that stays open would keep every page
        that was read in memory.

        Raises:
          ModelError: when the file cannot be read.
        """
        path, stored = self.files[name]
        try:
            with safe_open(path, framework="np") as file:
                found = (
                    file.get_slice(stored)[index] if index else file.get_tensor(stored)
                )
                return np.asarray(found, np.float32)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: {stored}: {error}") from error


@dataclass(frozen=True)
class Plan:
    """What is read for each parameter, and what is not read."""

    entries: dict[str, tuple[Entry, list[str | None]]]  # ours -> source of each layer
    notes: list[str]  # tensors ignored, parameters that start fresh


def resolve_folder(path: str, revision: str = "") -> pathlib.Path:
    """The folder of a checkpoint; one on the hub is fetched, if it is not here yet.

    Raises:
      ModelError: when it is neither a folder nor a hub name that can be fetched.
    """
    folder = pathlib.Path(path)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise ModelError(
            f"{path}: no such folder, and no hub name (OWNER/NAME) either; a "
            "checkpoint is a folder with config.json, *.safetensors and a tokenizer"
        )
    from huggingface_hub import snapshot_download

    try:
        fetched = snapshot_download(
            path, revision=revision or None, allow_patterns=_FILES
        )
    except Exception as error:  # the hub's client raises many kinds
        raise ModelError(
            f"{path}: no such folder, and it cannot be fetched from the hub: {error}"
        ) from error
    return pathlib.Path(fetched)


def open_checkpoint(settings: config.Pretrained) -> Checkpoint:
    """Reads what a checkpoint holds, without its weights.

    Raises:
      ModelError: for missing or broken files and unknown architectures, naming them.
    """
    folder = resolve_folder(settings.path, settings.revision)
    fields, text = _read_json(folder / "config.json")
    model = read_config(str(folder / "config.json"), fields)
    try:
        model = _adapted(model, settings)
    except config.ConfigError as error:
        raise ModelError(f"{folder / 'config.json'}: {error}") from error
    files, shapes = _tensors(folder)
    digest = hashlib.sha256(text + repr(sorted(shapes.items())).encode())
    prefix = prefix_of(model.family)
    if not any(name.startswith(prefix) for name in files):
        files = {_prefixed(name, prefix): one for name, one in files.items()}
        shapes = {_prefixed(name, prefix): one for name, one in shapes.items()}
    return Checkpoint(
        folder=folder,
        model=model,
        vocab_size=fields["vocab_size"],
        keep_layers=settings.keep_layers,
        score_tokens=_token_ids(folder, settings, model),
        files=files,
        shapes=shapes,
        digest=digest.hexdigest(),
    )


def _read_json(path: pathlib.Path) -> tuple[dict[str, Any], bytes]:
    """A config.json with the defaults of its architecture, and its bytes."""
    try:
        text = path.read_bytes()
        fields = json.loads(text)
        kind = fields.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{path}: cannot be read as JSON ({error}); expected a Hugging Face folder"
        ) from error
    if kind not in KNOWN:
        return fields, text
    # transformers knows the defaults, and the names that older releases used.
    from transformers import AutoConfig

    try:
        kwargs = {k: v for k, v in fields.items() if k not in ("model_type", "dtype")}
        full = AutoConfig.for_model(kind, **kwargs).to_dict()
    except Exception as error:  # transformers raises many kinds
        raise ModelError(f"{path}: transformers cannot read it: {error}") from error
    return full, text


def _adapted(
    model: config.Decoder | config.Encoder, settings: config.Pretrained
) -> config.Decoder | config.Encoder:
    """The model with the settings' dtype, dropout and layers."""
    changes: dict[str, Any] = dict(dtype=settings.dtype, remat=settings.remat)
    if settings.dropout >= 0:
        if isinstance(model, config.Decoder):
            raise config.ConfigError(
                "model.dropout is for encoders; a decoder has none"
            )
        changes["dropout"] = settings.dropout
    if keep := settings.keep_layers:
        if keep[-1] >= model.num_layers:
            raise config.ConfigError(
                f"model.keep_layers names layer {keep[-1]}, and the checkpoint's "
                f"{model.num_layers} layers are 0 to {model.num_layers - 1}"
            )
        local = [i for i, layer in enumerate(keep) if layer in model.local_layers]
        changes |= dict(num_layers=len(keep), local_layers=tuple(local))
        changes["window"] = model.window if local else 0
    return dataclasses.replace(model, **changes)


def _tensors(
    folder: pathlib.Path,
) -> tuple[dict[str, tuple[pathlib.Path, str]], dict[str, tuple[int, ...]]]:
    """File and shape of every tensor.

    Raises:
      ModelError: for missing, truncated or doubtful files, naming each.
    """
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{index}: cannot be read ({error}); fetch again"
            ) from error
        if wrong := [name for name in names if pathlib.Path(name).name != name]:
            raise ModelError(f"{index}: {wrong[0]!r} is not a file of this folder")
    files: dict[str, tuple[pathlib.Path, str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    problems = []
    for name in names:
        path = folder / name
        try:
            with safe_open(path, framework="np") as file:
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    part = file.get_slice(key)
                    if part.get_dtype() not in _DTYPES:
                        problems.append(
                            f"{path}: {key} has the dtype {part.get_dtype()}, expected "
                            f"{', '.join(_DTYPES)}"
                        )
                    files[key], shapes[key] = (path, key), tuple(part.get_shape())
        except (OSError, SafetensorError) as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise ModelError(
            "; ".join(problems)
            + "; weights must be whole safetensors files, fetch again"
        )
    return files, shapes


_DTYPES = ("F32", "BF16", "F16", "F64", "I64")  # I64: buffers, which are ignored
_HEADS = ("score.", "lm_head.", "classifier.", "cls.", "head.", "decoder.")


def _prefixed(name: str, prefix: str) -> str:
    """A bare body is saved without the prefix that it has under a head."""
    return name if name.startswith(_HEADS) else prefix + name


def _token_ids(
    folder: pathlib.Path,
    settings: config.Pretrained,
    model: config.Decoder | config.Encoder,
) -> tuple[int, ...]:
    if not settings.score_tokens:
        return ()
    if isinstance(model, config.Encoder):
        raise ModelError("model.score_tokens is for decoders, found an encoder")
    if model.logit_cap and len(settings.score_tokens) > 1:
        raise ModelError(
            f"{folder}: model.score_tokens of two tokens needs plain logits, and this "
            f"model bounds its logits at {model.logit_cap}; name one token"
        )
    import tokenizers

    path = folder / "tokenizer.json"
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise ModelError(f"{path}: cannot be read: {error}") from error
    ids = []
    for token in settings.score_tokens:
        found = tokenizer.token_to_id(token)
        if found is None:
            vocabulary = tokenizer.get_vocab()
            near = [t for t in vocabulary if t.strip("▁Ġ ").lower() == token.lower()]
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ModelError(f"{path}: model.score_tokens: no token {token!r}{hint}")
        ids.append(found)
    return tuple(ids)


# Buffers of older releases, and heads that rank nothing.
_IGNORED = re.compile(
    r".*(position_ids|token_type_ids|rotary_emb\.inv_freq)$"
    r"|^(cls|decoder|discriminator_predictions|generator_predictions|generator_lm_head)\."
    r"|^(score|classifier|lm_head|head)\.|^(bert|roberta)\.pooler\."
)


def make_plan(checkpoint: Checkpoint, head: str) -> Plan:
    """Which source tensor each parameter comes from, by names and shapes alone.

    Raises:
      ModelError: listing every tensor that is missing, unknown or of another shape.
    """
    model, shapes = checkpoint.model, checkpoint.shapes
    entries: dict[str, tuple[Entry, list[str | None]]] = {}
    used: set[str] = set()
    notes, problems = [], []
    kept = checkpoint.keep_layers or tuple(range(model.num_layers))
    for entry in table_of(model, checkpoint.vocab_size, head):
        if checkpoint.score_tokens and entry.ours == "head.dense":
            entry = _score_entry(entry, model, checkpoint.vocab_size)
        layers = kept if entry.stacked else (0,)
        names = [entry.source.format(i=i) for i in layers]
        found = [name for name in names if name in shapes]
        used |= set(found)
        if not found and entry.ours.startswith("head"):
            notes.append(f"{entry.ours}: not in the checkpoint, starts fresh")
            continue
        problems += [
            f"{name}: missing"
            for name in names
            if name not in shapes and name not in ABSENT
        ]
        problems += [
            f"{name}: shape {shapes[name]}, expected {entry.source_shape}"
            for name in found
            if shapes[name] != entry.source_shape
        ]
        sources = [name if name in shapes else None for name in names]
        entries[entry.ours] = (entry, sources)
    dropped = re.compile(r"\blayers?\.(\d+)\.")
    for name in sorted(set(shapes) - used):
        layer = dropped.search(name)
        if _IGNORED.match(name):
            notes.append(f"{name}: ignored")
        elif checkpoint.keep_layers and layer and int(layer[1]) not in kept:
            continue
        else:
            problems.append(f"{name}: unknown")
    if checkpoint.keep_layers:
        notes.append(f"layers {', '.join(map(str, kept))} are kept")
    if problems:
        raise ModelError(f"{checkpoint.folder}: {'; '.join(dict.fromkeys(problems))}")
    return Plan(entries, notes)


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
      abstract: `nnx.State` of the shapes of a model with that head.
      shardings: of the same structure.

    Returns:
      Parameters by dotted path, in their dtype in `abstract`, without those of a head
      that the checkpoint lacks; and what was ignored or left out, for the log.

    Raises:
      ModelError: listing every tensor that is missing, unknown or of another shape.
    """
    plan = checkpoint.plan(head)
    where = {path: one for path, one in flat(shardings)}
    params: dict[str, jax.Array] = {}
    for path, leaf in flat(abstract):
        if path not in plan.entries:
            continue
        read = partial(_read_part, checkpoint, *plan.entries[path], leaf)
        params[path] = jax.make_array_from_callback(leaf.shape, where[path], read)
    return params, plan.notes


def flat(params: Any) -> list[tuple[str, Any]]:
    """(dotted path, leaf) of an `nnx.State`."""
    leaves = nnx.traversals.flatten_mapping(nnx.to_pure_dict(params)).items()
    return [(".".join(map(str, path)), leaf) for path, leaf in leaves]


def _read_part(
    checkpoint: Checkpoint,
    entry: Entry,
    sources: list[str | None],
    leaf: jax.ShapeDtypeStruct,
    index: tuple[slice, ...],
) -> np.ndarray:
    """The part `index` of one of our parameters, layers in front where stacked."""
    full = tuple(
        slice(*part.indices(size)[:2])
        for part, size in zip(index, leaf.shape, strict=True)
    )
    if entry.ours == "head.dense" and checkpoint.score_tokens:
        [name] = sources
        rows = [
            checkpoint.read(str(name), (slice(token, token + 1), *full))[0]
            for token in checkpoint.score_tokens
        ]
        found = rows[0] - rows[1] if len(rows) == 2 else rows[0]
        return found.astype(leaf.dtype)
    if not entry.stacked:
        found = entry.read(partial(checkpoint.read, str(sources[0])), full)
        return found.astype(leaf.dtype)
    sizes = [part.stop - part.start for part in full]
    result = np.empty(sizes, leaf.dtype)
    for place, name in enumerate(sources[full[0]]):
        if name is None:
            result[place] = 1.0  # a norm that the source leaves out
        else:
            result[place] = entry.read(partial(checkpoint.read, name), full[1:])
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
    if described.get("pad_token_id", tokens["pad_token_id"]) != tokens["pad_token_id"]:
        raise ModelError(
            f"{tokenizer}: the padding token is {tokens['pad_token_id']}, and "
            f"{model.family!r} counts positions from {described['pad_token_id']}; set "
            "model.family to 'bert', which does not"
        )
    described |= {"dtype": "float32", **tokens}
    if head == "score":
        described |= {
            "id2label": {"0": "score"},
            "label2id": {"score": 0},
            "sentence_transformers": _RAW_SCORES,
        }
    text = json.dumps(described, indent=2) + "\n"
    temporary = folder / ".config.json"
    temporary.write_text(text)
    temporary.replace(folder / "config.json")


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
        save_file(tensors, folder / "model.safetensors", metadata=metadata)
        return
    where = {}
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file(group, folder / name, metadata=metadata)
        where |= dict.fromkeys(group, name)
    total = sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


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
    path.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n")
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
