"""Models in and out of Hugging Face folders: config.json, safetensors, tokenizer.

Each architecture is a table, source pattern -> (our path, transform), read in both
directions. `{i}` in a pattern is the layer, which we stack in front.
"""

import json
import pathlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ranker import config


class ModelError(ValueError):
    """A checkpoint that cannot be read as it is; the message lists every problem."""


@dataclass(frozen=True)
class Entry:
    """One tensor of the source: its name, ours, and the shape it has there."""

    source: str  # Hugging Face name, `{i}` for the layer
    ours: str  # dotted path in our parameters
    to_source: Callable[[np.ndarray], np.ndarray]  # one layer's array, ours to theirs
    shape: tuple[int, ...]  # ours, of one layer


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _dense(x: np.ndarray) -> np.ndarray:
    """[in, out] to torch's [out, in]."""
    return x.T


def _heads_out(x: np.ndarray) -> np.ndarray:
    """[D, N, H] to [N * H, D]."""
    return x.reshape(x.shape[0], -1).T


def _heads_in(x: np.ndarray) -> np.ndarray:
    """[N, H, D] to [D, N * H]."""
    return x.reshape(-1, x.shape[-1]).T


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1)


def _row(x: np.ndarray) -> np.ndarray:
    """A vector or a scalar with one output in front: [D] to [1, D], [] to [1]."""
    return x.reshape((1, *x.shape))


def _inverse(entry: Entry, x: np.ndarray) -> np.ndarray:
    """Theirs to ours, for the transforms above."""
    if entry.to_source in (_dense,):
        return x.T
    if entry.to_source in (_heads_out, _heads_in):
        return x.T.reshape(entry.shape)
    return x.reshape(entry.shape)


def llama_table(c: config.Decoder, vocab_size: int, head: str) -> list[Entry]:
    """LlamaForCausalLM ("language") or LlamaForSequenceClassification ("score")."""
    D, N, K, H, F = c.embed_dim, c.num_heads, c.num_kv_heads, c.head_dim, c.mlp_dim
    layer = "model.layers.{i}."
    table = [
        Entry("model.embed_tokens.weight", "body.embedding", _same, (vocab_size, D)),
        Entry("model.norm.weight", "body.norm", _same, (D,)),
    ]
    for source, ours, to_source, shape in (
        ("input_layernorm", "attention_norm", _same, (D,)),
        ("self_attn.q_proj", "q", _heads_out, (D, N, H)),
        ("self_attn.k_proj", "k", _heads_out, (D, K, H)),
        ("self_attn.v_proj", "v", _heads_out, (D, K, H)),
        ("self_attn.o_proj", "o", _heads_in, (N, H, D)),
        ("post_attention_layernorm", "mlp_norm", _same, (D,)),
        ("mlp.gate_proj", "gate", _dense, (D, F)),
        ("mlp.up_proj", "up", _dense, (D, F)),
        ("mlp.down_proj", "down", _dense, (F, D)),
    ):
        name = f"{layer}{source}.weight"
        table.append(Entry(name, f"body.layers.{ours}", to_source, shape))
    if head == "score":
        table.append(Entry("score.weight", "head.dense", _row, (D,)))
    elif not c.tie_embeddings:
        table.append(Entry("lm_head.weight", "head", _same, (vocab_size, D)))
    return table


def bert_table(c: config.Encoder, vocab_size: int, head: str) -> list[Entry]:
    """BertForSequenceClassification with one label."""
    D, N, H, F = c.embed_dim, c.num_heads, c.head_dim, c.mlp_dim
    table = []

    def norm(source: str, ours: str) -> None:
        table.append(Entry(f"{source}.weight", ours, _same, (D,)))
        table.append(Entry(f"{source}.bias", f"{ours}_bias", _same, (D,)))

    embeddings = "bert.embeddings."
    for source, ours, rows in (
        ("word_embeddings", "embedding", vocab_size),
        ("position_embeddings", "positions", c.max_positions),
        ("token_type_embeddings", "types", c.num_types),
    ):
        name = f"{embeddings}{source}.weight"
        table.append(Entry(name, f"body.{ours}", _same, (rows, D)))
    norm(f"{embeddings}LayerNorm", "body.norm")
    layer, body = "bert.encoder.layer.{i}.", "body.layers."
    for source, ours in (("query", "q"), ("key", "k"), ("value", "v")):
        name = f"{layer}attention.self.{source}"
        table.append(Entry(f"{name}.weight", body + ours, _heads_out, (D, N, H)))
        table.append(Entry(f"{name}.bias", f"{body}{ours}_bias", _flat, (N, H)))
    for source, ours, to_source, shape, out in (
        ("attention.output.dense", "o", _heads_in, (N, H, D), D),
        ("intermediate.dense", "up", _dense, (D, F), F),
        ("output.dense", "down", _dense, (F, D), D),
    ):
        name = layer + source
        table.append(Entry(f"{name}.weight", body + ours, to_source, shape))
        table.append(Entry(f"{name}.bias", f"{body}{ours}_bias", _same, (out,)))
    norm(f"{layer}attention.output.LayerNorm", f"{body}attention_norm")
    norm(f"{layer}output.LayerNorm", f"{body}mlp_norm")
    if head == "score":
        pooler = "bert.pooler.dense."
        table += [
            Entry(f"{pooler}weight", "head.pooler", _dense, (D, D)),
            Entry(f"{pooler}bias", "head.pooler_bias", _same, (D,)),
            Entry("classifier.weight", "head.dense", _row, (D,)),
            Entry("classifier.bias", "head.bias", _row, ()),
        ]
    return table


def table_of(settings: config.Model, vocab_size: int, head: str) -> list[Entry]:
    """The table of a model."""
    if isinstance(settings, config.Decoder):
        return llama_table(settings, vocab_size, head)
    return bert_table(settings, vocab_size, head)


# --- export ---


def to_tensors(
    settings: config.Model, params: nnx.State, head: str
) -> dict[str, np.ndarray]:
    """Our parameters as Hugging Face tensors, float32 on the host."""
    ours = {
        ".".join(str(part) for part in path): np.asarray(value, np.float32)
        for path, value in _leaves(params)
    }
    vocab_size = ours["body.embedding"].shape[0]
    tensors = {}
    for entry in table_of(settings, vocab_size, head):
        value = ours.pop(entry.ours)
        if "{i}" in entry.source:
            for i, layer in enumerate(value):
                name = entry.source.format(i=i)
                tensors[name] = np.ascontiguousarray(entry.to_source(layer))
        else:
            tensors[entry.source] = np.ascontiguousarray(entry.to_source(value))
    assert not ours, f"parameters without a place in the table: {sorted(ours)}"
    return tensors


def _leaves(params: nnx.State) -> list[tuple[tuple, Any]]:
    return list(nnx.traversals.flatten_mapping(nnx.to_pure_dict(params)).items())


def _config_json(settings: config.Model, vocab_size: int) -> dict[str, Any]:
    if isinstance(settings, config.Decoder):
        return {
            "architectures": ["LlamaForSequenceClassification"],
            "model_type": "llama",
            "hidden_size": settings.embed_dim,
            "num_hidden_layers": settings.num_layers,
            "num_attention_heads": settings.num_heads,
            "num_key_value_heads": settings.num_kv_heads,
            "head_dim": settings.head_dim,
            "intermediate_size": settings.mlp_dim,
            "rms_norm_eps": settings.norm_eps,
            "rope_theta": settings.rope_theta,
            "tie_word_embeddings": settings.tie_embeddings,
            "vocab_size": vocab_size,
        }
    return {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "hidden_size": settings.embed_dim,
        "num_hidden_layers": settings.num_layers,
        "num_attention_heads": settings.num_heads,
        "intermediate_size": settings.mlp_dim,
        "max_position_embeddings": settings.max_positions,
        "type_vocab_size": settings.num_types,
        "layer_norm_eps": settings.norm_eps,
        "hidden_act": "gelu",
        "hidden_dropout_prob": settings.dropout,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout": settings.dropout,
        "position_embedding_type": "absolute",
        "vocab_size": vocab_size,
    }


# Without it CrossEncoder applies a sigmoid to a single label.
_RAW_SCORES = {"activation_fn": "torch.nn.modules.linear.Identity"}


def export_huggingface(
    folder: pathlib.Path,
    settings: config.Encoder,
    params: nnx.State,
    *,
    tokenizer: pathlib.Path,
    length: int,
) -> None:
    """Writes a student as `BertForSequenceClassification` with one raw score.

    Args:
      folder: target; made if missing. config.json is written last, so that a folder
        that has one is whole.
      settings: of the student.
      params: its parameters.
      tokenizer: its Hugging Face folder.
      length: tokens that stock tools are to cut a pair to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    tensors = to_tensors(settings, params, "score")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for file in sorted(tokenizer.iterdir()):
        if file.suffix in (".json", ".txt", ".model"):
            shutil.copyfile(file, folder / file.name)
    _amend_tokenizer(folder / "tokenizer_config.json", length)
    described = {
        **_config_json(
            settings, tensors["bert.embeddings.word_embeddings.weight"].shape[0]
        ),
        "dtype": "float32",
        "id2label": {"0": "score"},
        "label2id": {"score": 0},
        "sentence_transformers": _RAW_SCORES,
    }
    text = json.dumps(described, indent=2) + "\n"
    temporary = folder / ".config.json"
    temporary.write_text(text)
    temporary.replace(folder / "config.json")


def _amend_tokenizer(path: pathlib.Path, length: int) -> None:
    """Stock tokenizers must cut where we do and pass token types."""
    described = json.loads(path.read_text()) if path.is_file() else {}
    described["model_max_length"] = length
    described["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    path.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n")


# --- import ---


def read_config(folder: pathlib.Path) -> tuple[config.Model, int]:
    """The model config and vocabulary size that config.json describes.

    Raises:
      ModelError: for a missing file, an unknown architecture, or a setting that our
        models cannot express.
    """
    path = folder / "config.json"
    try:
        c = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: cannot be read as JSON ({error}); expected a Hugging Face folder"
        ) from error
    kind = c.get("model_type")
    if kind == "llama":
        return _llama_config(path, c), c["vocab_size"]
    if kind == "bert":
        return _bert_config(path, c), c["vocab_size"]
    raise ModelError(
        f"{path}: model_type {kind!r} is unknown; known are llama and bert"
    )


def _expect(path: pathlib.Path, c: dict[str, Any], wanted: dict[str, Any]) -> None:
    wrong = [
        f"{name} is {c[name]!r}, and only {value!r} can be read"
        for name, value in wanted.items()
        if c.get(name) not in (None, value)
    ]
    if wrong:
        raise ModelError(f"{path}: {'; '.join(wrong)}")


def _llama_config(path: pathlib.Path, c: dict[str, Any]) -> config.Decoder:
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ModelError(f"{path}: rope scaling {kind!r} cannot be read yet")
    wanted = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
    _expect(path, c, wanted)
    heads = c["num_attention_heads"]
    return config.Decoder(
        num_layers=c["num_hidden_layers"],
        embed_dim=c["hidden_size"],
        num_heads=heads,
        num_kv_heads=c.get("num_key_value_heads") or heads,
        head_dim=c.get("head_dim") or c["hidden_size"] // heads,
        mlp_dim=c["intermediate_size"],
        rope_theta=rope.get("rope_theta", c.get("rope_theta", 10000.0)),
        norm_eps=c.get("rms_norm_eps", 1e-6),
        tie_embeddings=c.get("tie_word_embeddings", False),
    )


def _bert_config(path: pathlib.Path, c: dict[str, Any]) -> config.Encoder:
    wanted = {"hidden_act": "gelu", "position_embedding_type": "absolute"}
    _expect(path, c, wanted)
    return config.Encoder(
        num_layers=c["num_hidden_layers"],
        embed_dim=c["hidden_size"],
        num_heads=c["num_attention_heads"],
        mlp_dim=c["intermediate_size"],
        max_positions=c.get("max_position_embeddings", 512),
        num_types=c.get("type_vocab_size", 2),
        norm_eps=c.get("layer_norm_eps", 1e-12),
        dropout=c.get("hidden_dropout_prob", 0.1),
    )


# Buffers of older releases, and heads that rank nothing.
_IGNORED = re.compile(r".*(position_ids|token_type_ids|rotary_emb\.inv_freq)$|^cls\..*")


def read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Every tensor of the folder's safetensors files (never pickle), float32.

    Raises:
      ModelError: for missing or truncated files, naming them.
    """
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    tensors: dict[str, np.ndarray] = {}
    problems = []
    for name in names:
        path = folder / name
        try:
            with safe_open(path, framework="np") as file:
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    tensors[key] = np.asarray(file.get_tensor(key), np.float32)
        except (OSError, SafetensorError) as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise ModelError(
            "; ".join(problems)
            + "; weights must be whole safetensors files, fetch again"
        )
    return tensors


def load_huggingface(
    folder: str | pathlib.Path, head: str
) -> tuple[config.Model, dict[str, np.ndarray], list[str]]:
    """Reads a checkpoint for a model with `head` ("language" or "score").

    Returns:
      The model config; our parameters by dotted path, float32 (without those of a head
      that the checkpoint lacks); and what was ignored or left out, for the log.

    Raises:
      ModelError: listing every tensor that is missing, unknown or of another shape.
    """
    folder = pathlib.Path(folder)
    settings, vocab_size = read_config(folder)
    tensors = read_tensors(folder)
    if isinstance(settings, config.Encoder):
        tensors = {  # BertModel saves without the prefix
            name
            if name.startswith(("bert.", "classifier.", "cls."))
            else f"bert.{name}": value
            for name, value in tensors.items()
        }
    elif "model.embed_tokens.weight" not in tensors:
        tensors = {
            name if name.startswith(("score.", "lm_head.")) else f"model.{name}": value
            for name, value in tensors.items()
        }
    params: dict[str, np.ndarray] = {}
    notes, problems = [], []
    for entry in table_of(settings, vocab_size, head):
        stacked = "{i}" in entry.source
        count = settings.num_layers if stacked else 1
        names = [entry.source.format(i=i) for i in range(count)]
        missing = [name for name in names if name not in tensors]
        if missing and entry.ours.startswith("head"):
            notes.append(f"{entry.ours}: not in the checkpoint, starts fresh")
            continue
        problems += [f"{name}: missing" for name in missing]
        if missing:
            continue
        parts = []
        wanted = entry.to_source(np.empty(entry.shape, np.float32)).shape
        for name in names:
            value = tensors.pop(name)
            if value.shape != wanted:
                problems.append(f"{name}: shape {value.shape}, expected {wanted}")
            else:
                parts.append(_inverse(entry, value))
        if len(parts) == count:
            params[entry.ours] = np.stack(parts) if stacked else parts[0]
    tied = isinstance(settings, config.Decoder) and settings.tie_embeddings
    for name in sorted(tensors):
        other_head = name.startswith(
            ("score.", "classifier.", "lm_head.", "bert.pooler.")
        )
        if _IGNORED.match(name) or (tied and name == "lm_head.weight") or other_head:
            notes.append(f"{name}: ignored")
        else:
            problems.append(f"{name}: unknown")
    if problems:
        raise ModelError(f"{folder}: {'; '.join(problems)}")
    return settings, params, notes
