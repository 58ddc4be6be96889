"""Models as Hugging Face folders that stock tools load as they are."""

import dataclasses
import json
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import ml_dtypes
import numpy as np

from ranker import config
from ranker.errors import ModelError
from ranker.models.families import (
    FAMILIES,
    Family,
    read_config,
    table_of,
    write_config,
)
from ranker.models.fields import Json
from ranker.models.params import flat
from ranker.models.tables import SAME, Entry, Transformer
from ranker.storage import replacing, write_json

SHARD_BYTES = 5_000_000_000  # of one safetensors file that is written
_CHUNK = 1 << 26  # bytes that are converted at a time
_WIDTHS = {"float32": (np.float32, "F32"), "bfloat16": (ml_dtypes.bfloat16, "BF16")}


# --- tensors ---


@dataclass(frozen=True)
class LazyTensor:
    """A tensor to be written, made when it is asked for."""

    shape: tuple[int, ...]
    parts: Callable[[], Iterator[np.ndarray]]  # float32, row after row

    def whole(self) -> np.ndarray:
        """The tensor, float32."""
        return np.concatenate([np.atleast_1d(p) for p in self.parts()]).reshape(
            self.shape
        )


def to_sources(model: Transformer, params: Any, head: str) -> dict[str, LazyTensor]:
    """Our parameters as Hugging Face tensors, none of them made yet."""
    ours = dict(flat(params))
    vocab_size = ours["body.embedding"].shape[0]
    family = FAMILIES[model.family]
    parts: dict[str, list[tuple[Entry, Any, int | None]]] = {}
    for entry in table_of(model, vocab_size, head):
        value = ours.pop(entry.ours)
        for i in range(value.shape[0]) if entry.stacked else [None]:
            name = entry.source.format(i=i)
            if name not in family.absent:
                parts.setdefault(name, []).append((entry, value, i))
    assert not ours, f"parameters without a place in the table: {sorted(ours)}"
    return {name: _source(each) for name, each in parts.items()}


def _source(parts: list[tuple[Entry, Any, int | None]]) -> LazyTensor:
    def made() -> Iterator[np.ndarray]:
        for entry, value, layer in parts:
            if layer is None and entry.transform is SAME and value.ndim > 1:
                # A table of words is as large as many layers.
                rows = max(1, _CHUNK // (4 * math.prod(value.shape[1:])))
                for start in range(0, value.shape[0], rows):
                    yield rows_of(value, start, min(start + rows, value.shape[0]))
            elif layer is None:
                yield entry.transform.to_source(np.asarray(value, np.float32))
            else:
                part = rows_of(value, layer, layer + 1)[0]
                yield entry.transform.to_source(part)

    return LazyTensor(parts[0][0].source_shape, made)


def rows_of(value: Any, start: int, stop: int) -> np.ndarray:
    """Rows of an array on a mesh, float32, read from each of its devices.

    Indexing the array itself would first copy all of it to every device.
    """
    if not isinstance(value, jax.Array):
        return np.asarray(value[start:stop], np.float32)
    assert value.is_fully_addressable
    found = np.empty((stop - start, *value.shape[1:]), np.float32)
    done = set()
    for shard in value.addressable_shards:
        sizes = zip(shard.index, value.shape, strict=True)
        (first, last), *others = bounds = [p.indices(size)[:2] for p, size in sizes]
        low, high = max(first, start), min(last, stop)
        if low < high and tuple(bounds) not in done:
            done.add(tuple(bounds))
            place = (slice(low - start, high - start), *(slice(*one) for one in others))
            found[place] = np.asarray(shard.data[low - first : high - first])
    return found


def save_sources(
    folder: pathlib.Path, sources: dict[str, LazyTensor], dtype: config.DType
) -> None:
    """One safetensors file, or several with an index where it would be large.

    One tensor after the other is made and written, so that the host never holds more
    than one of them.
    """
    width = np.dtype(_WIDTHS[dtype][0]).itemsize
    sizes = {n: width * math.prod(one.shape) for n, one in sources.items()}
    groups: list[list[str]] = [[]]
    for name, size in sizes.items():
        if groups[-1] and sum(sizes[n] for n in groups[-1]) + size > SHARD_BYTES:
            groups.append([])
        groups[-1].append(name)
    for stale in folder.glob("model*.safetensors"):
        stale.unlink()
    if len(groups) == 1:
        save_file(folder / "model.safetensors", sources, dtype)
        return
    where = {}
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file(folder / name, {one: sources[one] for one in group}, dtype)
        where |= dict.fromkeys(group, name)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
    write_json(folder / "model.safetensors.index.json", index, indent=2)


def save_file(
    path: pathlib.Path, sources: dict[str, LazyTensor], dtype: config.DType
) -> None:
    """A safetensors file: the length of a JSON header, the header, then all numbers."""
    kind, label = _WIDTHS[dtype]
    header: Json = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, one in sources.items():
        size = np.dtype(kind).itemsize * math.prod(one.shape)
        offsets = [at, at + size]
        header[name] = {"dtype": label, "shape": one.shape, "data_offsets": offsets}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of eight bytes
    with replacing(path) as unfinished, open(unfinished, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for one in sources.values():
            for part in one.parts():
                file.write(
                    np.ascontiguousarray(part.astype(kind, copy=False)).tobytes()
                )
        written = file.tell() - 8 - len(text)
    assert written == at, f"{path}: {written} bytes of tensors, and {at} announced"


# --- the folder ---

# Without it CrossEncoder applies a sigmoid to a single label.
_IDENTITY = "torch.nn.modules.linear.Identity"
_CROSS_ENCODER = {
    "model_type": "CrossEncoder",
    "activation_fn": _IDENTITY,
    "prompts": {},
    "default_prompt_name": None,
}


def export_huggingface(
    folder: pathlib.Path,
    model: Transformer,
    params: Any,
    *,
    head: str,
    tokenizer: pathlib.Path,
    length: int,
    dtype: config.DType = "float32",
) -> list[str]:
    """Writes a model that stock tools load as it is, with one raw score.

    Args:
      folder: target; made if missing. config.json is written last, so that a folder
        that has one is whole.
      model: its config; `family` says which architecture is written.
      params: its parameters.
      head: "score", or "language" for a decoder after continued pre-training.
      tokenizer: its Hugging Face folder.
      length: tokens that stock tools are to cut a pair to.
      dtype: of the numbers in the file.

    Returns:
      What some readers cannot be told, for the log.

    Raises:
      ModelError: when the family cannot express the model.
    """
    family, rows = FAMILIES[model.family], _rows(params)
    modules = head == "score" and _needs_modules(model, family, rows, length)
    told = _plain_head(model, rows, length) if modules else model
    described, notes = _describe(told, rows, length, "" if modules else head, family)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in ("config.json", "model.safetensors.index.json", "modules.json"):
        (folder / stale).unlink(missing_ok=True)
    sources = to_sources(model, params, head)
    if modules:
        sources = save_modules(folder, model, sources, family)
        notes.append(
            "transformers has no class with this head, so it is written as modules "
            "of sentence-transformers (from 6.0 on), which CrossEncoder loads"
        )
    save_sources(folder, sources, dtype)
    _copy_tokenizer(tokenizer, folder)
    amended = _amend_tokenizer(folder / "tokenizer_config.json", length, model)
    tokens = _token_fields(tokenizer, amended)
    _check_padding(tokenizer, told, head, tokens)
    described |= {"dtype": dtype, **_ids(described, tokens)}
    if head == "score":
        described |= {
            "id2label": {"0": "score"},
            "label2id": {"score": 0},
            "sentence_transformers": {"activation_fn": _IDENTITY},
        }
        path = folder / "config_sentence_transformers.json"
        write_json(path, _CROSS_ENCODER, indent=2)
    write_json(folder / "config.json", described, indent=2)
    return notes


def _rows(params: Any) -> int:
    return dict(flat(params))["body.embedding"].shape[0]


# --- a head of modules ---

_HEAD_FIELDS = ("pooling", "head_activation", "head_norm", "head_bias", "pooler_bias")
_HEAD_FIELDS += ("grades",)
_POOLINGS = {"cls": "cls", "last": "lasttoken", "mean": "mean"}
_ACTIVATIONS = {
    "none": _IDENTITY,
    "tanh": "torch.nn.modules.activation.Tanh",
    "gelu": "torch.nn.modules.activation.GELU",
    "relu": "torch.nn.modules.activation.ReLU",
}
_SOFTMAX = "torch.nn.modules.activation.Softmax"
_BASE = "sentence_transformers.base.modules"
_MODULES = {
    "Transformer": f"{_BASE}.transformer.Transformer",
    "Dense": f"{_BASE}.dense.Dense",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "LayerNorm": (
        "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm"
    ),
}


def _needs_modules(model: Transformer, family: Family, rows: int, length: int) -> bool:
    """Whether transformers has no class of the family with the model's head."""
    differing = _differing(model, _full(model, rows, length, "score"))
    if differing and not set(differing) <= set(_HEAD_FIELDS):
        return False  # said by `_check_family`
    needed = bool(differing) or not family.scorer
    if needed and model.pooling not in _POOLINGS:
        raise ModelError(
            f"the family {model.family!r} has no class that pools as model.pooling "
            f"{model.pooling!r}; known are {', '.join(_POOLINGS)}"
        )
    normed = isinstance(model, config.Encoder) and model.head_norm
    if needed and normed and model.norm_eps != _NORM_EPS:
        raise ModelError(
            f"the head's norm has norm_eps {model.norm_eps}, and a module of "
            f"sentence-transformers has {_NORM_EPS}; set model.head_norm to false"
        )
    if needed and isinstance(model, config.Decoder) and model.grades:
        if model.logit_cap:
            raise ModelError(
                f"the grades' logits are bounded at {model.logit_cap} (logit_cap), "
                "which no module of sentence-transformers does; score with this stage "
                "(ranker.score), and export the student that learns from it"
            )
    return needed


_NORM_EPS = 1e-5


def _plain_head(model: Transformer, rows: int, length: int) -> Transformer:
    """The model with the head that its family has."""
    again, _ = read_config("config.json", _full(model, rows, length, "score"))
    fields = {name: getattr(again, name, None) for name in _HEAD_FIELDS}
    known = {name: one for name, one in fields.items() if hasattr(model, name)}
    return dataclasses.replace(model, **known)


def save_modules(
    folder: pathlib.Path,
    model: Transformer,
    sources: dict[str, LazyTensor],
    family: Family,
) -> dict[str, LazyTensor]:
    """Writes pooling and dense layers as modules; returns the body's tensors."""
    mode = {"embedding_dimension": model.embed_dim}
    mode |= {"pooling_mode": _POOLINGS[model.pooling], "include_prompt": True}
    if isinstance(model, config.Decoder) and model.grades:
        layers = _grade_layers(model, sources, family)
    else:
        layers = _head_layers(model, sources, family)
    fields: list[Module] = [("Pooling", mode, {}), *layers]
    listed = [{"idx": 0, "name": "0", "path": "", "type": _MODULES["Transformer"]}]
    for place, (kind, described, tensors) in enumerate(fields, start=1):
        path = f"{place}_{kind}"
        (folder / path).mkdir(exist_ok=True)
        write_json(folder / path / "config.json", described, indent=2)
        if tensors:
            save_file(folder / path / "model.safetensors", tensors, "float32")
        listed.append(
            {"idx": place, "name": str(place), "path": path, "type": _MODULES[kind]}
        )
    output = {"method": "forward", "method_output_name": "last_hidden_state"}
    transformer = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": output},
        "module_output_name": "token_embeddings",
    }
    write_json(folder / "sentence_bert_config.json", transformer, indent=2)
    write_json(folder / "modules.json", listed, indent=2)
    root = family.root
    return {n.removeprefix(root): s for n, s in sources.items() if n.startswith(root)}


Module = tuple[str, Json, dict[str, LazyTensor]]  # kind, settings, tensors


def _head_layers(
    model: Transformer, sources: dict[str, LazyTensor], family: Family
) -> list[Module]:
    """The layers after the pooling: perhaps a pooler and a norm, and the score."""
    width, names, made = model.embed_dim, family.head, []

    def dense(name: str, size: int, activation: str) -> None:
        tensors = {
            f"linear.{part}": sources[f"{name}.{part}"]
            for part in ("weight", "bias")
            if f"{name}.{part}" in sources
        }
        made.append(_dense((width, size), activation, tensors))

    if model.head_activation != "none":
        dense(names.pooler, width, _ACTIVATIONS[model.head_activation])
    if isinstance(model, config.Encoder) and model.head_norm:
        zeros = LazyTensor((width,), lambda: iter([np.zeros(width, np.float32)]))
        tensors = {"norm.weight": sources[f"{names.norm}.weight"], "norm.bias": zeros}
        made.append(("LayerNorm", {"dimension": width}, tensors))
    dense(names.dense, 1, _IDENTITY)
    return [*made[:-1], _ends(made[-1])]


def _grade_layers(
    model: config.Decoder, sources: dict[str, LazyTensor], family: Family
) -> list[Module]:
    """The expected grade: logits and their softmax, then the grades as weights."""
    logits, count = sources[f"{family.head.dense}.weight"], model.grades
    scale = np.float32(model.logit_scale)
    weight = LazyTensor(logits.shape, lambda: (part * scale for part in logits.parts()))
    grades = LazyTensor((1, count), lambda: iter([np.arange(count, dtype=np.float32)]))
    sizes = (model.embed_dim, count)
    return [
        _dense(sizes, _SOFTMAX, {"linear.weight": weight}),
        _ends(_dense((count, 1), _IDENTITY, {"linear.weight": grades})),
    ]


def _dense(
    sizes: tuple[int, int], activation: str, tensors: dict[str, LazyTensor]
) -> Module:
    described = {
        "in_features": sizes[0],
        "out_features": sizes[1],
        "bias": "linear.bias" in tensors,
        "activation_function": activation,
        "module_input_name": "sentence_embedding",
        "module_output_name": "sentence_embedding",
    }
    return "Dense", described, tensors


def _ends(module: Module) -> Module:
    """The layer whose output is the score."""
    kind, described, tensors = module
    return kind, described | {"module_output_name": "scores"}, tensors


def _describe(
    model: Transformer, rows: int, length: int, head: str, family: Family
) -> tuple[Json, list[str]]:
    """The whole config.json, in the spellings of today and of older readers, and notes.

    All fields of transformers' class are written: a server such as
    text-embeddings-inference has no defaults for them.
    """
    full = _full(model, rows, length, head)
    _check_family(model, full)
    old, notes = family.old(model, full)
    dropped = ("_name_or_path", "transformers_version", "torch_dtype")
    full = {name: value for name, value in full.items() if name not in dropped}
    return full | old, notes


def _full(model: Transformer, rows: int, length: int, head: str) -> Json:
    """The config.json with all fields of transformers' class."""
    from transformers import AutoConfig

    described = write_config(model, rows, length, head)
    fields = {k: v for k, v in described.items() if k != "model_type"}
    return AutoConfig.for_model(model.family, **fields).to_dict()


def _check_family(model: Transformer, full: Json) -> None:
    """Refuses to write a config.json that would be read as another model."""
    differing = _differing(model, full)
    if differing:
        said = "; ".join(f"{n} {a!r} would be {b!r}" for n, (a, b) in differing.items())
        raise ModelError(
            f"the family {model.family!r} cannot express this model: {said}; set "
            "model.family or these fields so that they fit"
        )


def _differing(model: Transformer, full: Json) -> dict[str, tuple[Any, Any]]:
    """Fields that would be read otherwise than they are, and how."""
    again, _ = read_config("config.json", full)
    ours = config.to_dict(model)
    free = [name for name in config.FREE_FIELDS if name != "dropout" and name in ours]
    theirs = config.to_dict(again) | {name: ours[name] for name in free}
    if isinstance(model, config.Decoder) and model.head_activation == "none":
        theirs["head_bias"] = ours["head_bias"]  # told by the file's tensors
    return {
        name: (ours[name], theirs[name])
        for name in ours
        if not _alike(ours[name], theirs[name])
    }


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, int | float):
        return abs(a - b) <= 1e-6 * max(abs(a), 1e-30)
    if isinstance(a, dict) and isinstance(b, dict) and set(a) == set(b):
        return all(_alike(a[name], b[name]) for name in a)
    return a == b


# --- the tokenizer ---


def _copy_tokenizer(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Its files, of which tokenizer.json neither cuts nor pads by itself."""
    apart = ("config.json", "generation_config.json", "modules.json")
    apart += ("config_sentence_transformers.json", "sentence_bert_config.json")
    for file in sorted(source.iterdir()):
        if file.suffix in (".json", ".txt", ".model") and file.name not in apart:
            if not file.name.endswith(".index.json"):
                shutil.copyfile(file, folder / file.name)
    path = folder / "tokenizer.json"
    if path.is_file():
        described = json.loads(path.read_text())
        if described.get("truncation") or described.get("padding"):
            described |= {"truncation": None, "padding": None}
            write_json(path, described)


def _amend_tokenizer(path: pathlib.Path, length: int, model: Transformer) -> Json:
    """Stock tokenizers must cut and pad where we do, and give the types we read."""
    described = json.loads(path.read_text()) if path.is_file() else {}
    described["model_max_length"] = length
    # transformers 4 does not know 5's name of the class, and 5 knows 4's.
    if described.get("tokenizer_class") in (None, "TokenizersBackend"):
        described["tokenizer_class"] = "PreTrainedTokenizerFast"
    described |= {"truncation_side": "right", "padding_side": "right"}
    given = described.get("model_input_names")
    names = ["input_ids", "attention_mask"]
    types = isinstance(model, config.Encoder) and model.num_types > 1
    if types and (given is None or "token_type_ids" in given):
        names.insert(1, "token_type_ids")
    described["model_input_names"] = names
    write_json(path, described, indent=2)
    return described


def _token_fields(tokenizer: pathlib.Path, described: Json) -> dict[str, int]:
    """Ids of special tokens, which stock models read from config.json."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    fields = {}
    for name in ("pad", "bos", "eos", "cls", "sep", "mask"):
        token = described.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        found = backend.token_to_id(token) if token else None
        if found is not None:
            fields[f"{name}_token_id"] = found
    # A decoder's last real token is found by the padding after it.
    if "pad_token_id" not in fields and "eos_token_id" in fields:
        fields["pad_token_id"] = fields["eos_token_id"]
    return fields


def _ids(described: Json, tokens: dict[str, int]) -> Json:
    """All ids of special tokens that config.json has; none is left at a default.

    An encoder's first and last tokens stand in for a beginning and an end that its
    tokenizer does not have: servers and transformers' classes want a number there.
    """
    stands_in = {"bos": "cls", "eos": "sep", "cls": "bos", "sep": "eos", "mask": "pad"}
    found: Json = dict(tokens)
    for name, other in stands_in.items():
        field = f"{name}_token_id"
        if field in described and field not in tokens:
            found[field] = tokens.get(f"{other}_token_id")
            if name in ("bos", "eos") and isinstance(described[field], type(None)):
                found[field] = None
    if "pad_token_id" in described:
        found.setdefault("pad_token_id", None)
    return found


def _check_padding(
    tokenizer: pathlib.Path, model: Transformer, head: str, tokens: dict[str, int]
) -> None:
    pad = tokens.get("pad_token_id")
    if pad is None and head == "score":
        raise ModelError(
            f"{tokenizer}: the tokenizer has no padding and no end token, by which "
            "stock tools find the last token; set pad_token in tokenizer_config.json "
            "to one of its tokens"
        )
    wanted = write_config(model, 1, 1, "score").get("pad_token_id", pad)
    if wanted != pad:
        raise ModelError(
            f"{tokenizer}: the padding token is {pad}, and {model.family!r} counts "
            f"positions from {wanted}; set model.family to 'bert', which does not"
        )
