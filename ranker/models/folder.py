"""What a Hugging Face folder holds, told without its weights: config, tensors, heads.

Weights are only ever read from safetensors, never from pickles, and no code that comes
with a checkpoint is run.
"""

import functools
import hashlib
import json
import math
import pathlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ranker.errors import ModelError
from ranker.models.encoders import today
from ranker.models.families import FAMILIES, family_of
from ranker.models.fields import Json
from ranker.models.tables import HeadNames

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "README.md"]
# Second copies of the weights, for other tools or in another width.
_OTHERS = ["onnx/*", "openvino/*", "original/*", "consolidated*"]
_OTHERS += ["*.fp16.safetensors", "*.bf16.safetensors", "*.fp16-*.safetensors"]
# Bytes of a number; I64: buffers, which are ignored.
_DTYPES = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8, "I64": 8}
# More would fill the memory with lists of their names.
_AT_MOST = {"num_hidden_layers": 1000, "num_labels": 100_000}
_SAMPLE = 1024  # numbers of a tensor that its digest is made from, in three places


@dataclass(frozen=True)
class Tensor:
    """Where a tensor of a checkpoint is."""

    path: pathlib.Path  # its file
    name: str  # in that file
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it
    first: int = 0  # row of the file's tensor that this one begins at

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A part of the tensor, in its own dtype.

        The file is opened for each part: a map that stays open would keep every page
        that was read in memory.

        Raises:
          ModelError: when the file cannot be read.
        """
        try:
            with safe_open(self.path, framework="np") as file:
                if not index and not self.first:
                    return file.get_tensor(self.name)
                rows, *rest = index or (slice(0, self.shape[0]),)
                rows = slice(rows.start + self.first, rows.stop + self.first)
                return file.get_slice(self.name)[(rows, *rest)]
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{self.path}: {self.name}: {error}") from error


@dataclass(frozen=True)
class Held:
    """A small tensor that is made of those in the files, such as a difference."""

    value: np.ndarray
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """As of a tensor in a file."""
        return self.value.shape

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A part of it."""
        return self.value[index]


Tensors = dict[str, Tensor | Held]


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
            path,
            revision=revision or None,
            allow_patterns=_FILES,
            ignore_patterns=_OTHERS,
        )
    except Exception as error:  # the hub's client raises many kinds
        raise ModelError(
            f"{path}: no such folder, and it cannot be fetched from the hub: {error}"
        ) from error
    return pathlib.Path(fetched)


def read_model_json(path: pathlib.Path) -> Any:
    """A JSON file.

    Raises:
      ModelError: when it is missing or broken.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from error


@dataclass(frozen=True)
class Described:
    """What a config.json says."""

    path: pathlib.Path
    fields: Json  # with the defaults of its architecture, in today's spelling
    written: Json  # as in the file; of a model that also reads images, the text part
    defaults: Json  # of transformers' class
    notes: list[str]


def read_folder(folder: pathlib.Path) -> Described:
    """A folder's config.json.

    Raises:
      ModelError: when there is none, or its architecture or weights are of no use here.
    """
    path = folder / "config.json"
    if not path.exists() and (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} holds adapters alone; merge them into the model that they were "
            "trained on (peft's merge_and_unload) and save that"
        )
    whole = read_model_json(path)
    if not isinstance(whole, dict):
        raise ModelError(f"{path}: is not an object; expected a Hugging Face folder")
    written = today(str(path), _text_part(whole))
    if whole.get("quantization_config") or written.get("quantization_config"):
        raise ModelError(
            f"{path}: the weights are quantised (quantization_config); use the "
            "checkpoint that they were made from"
        )
    kind = written.get("model_type")
    family = family_of(str(path), kind)
    for name, most in _AT_MOST.items():
        found = written.get(name, 0)
        if isinstance(found, (int, float)) and not found <= most:
            raise ModelError(f"{path}: {name} is {found:g}, and at most {most} is read")
    # transformers knows the defaults, and the names that older releases used.
    from transformers import AutoConfig

    try:
        dropped = ("model_type", "dtype", "auto_map")
        kwargs = {k: v for k, v in written.items() if k not in dropped}
        fields = AutoConfig.for_model(family.name, **kwargs).to_dict()
    except Exception as error:  # transformers raises many kinds
        reason = " ".join(str(error).split())
        raise ModelError(f"{path}: transformers cannot read it: {reason}") from error
    notes = _strange_code(whole, written, family.architecture)
    return Described(path, fields, written, class_defaults(family.name), notes)


@functools.cache
def class_defaults(kind: str) -> Json:
    """The fields of transformers' class for a model_type, all at their defaults."""
    from transformers import AutoConfig

    return AutoConfig.for_model(kind).to_dict()


def _text_part(whole: Json) -> Json:
    """The fields of the model that reads text, inside one that also reads images."""
    inner = whole.get("text_config")
    if whole.get("model_type") in FAMILIES or not isinstance(inner, dict):
        inner = {} if whole.get("model_type") == "gemma3" else None
    if inner is None:
        return whole
    kind = "gemma3_text" if whole.get("model_type") == "gemma3" else None
    kind = inner.get("model_type", kind)
    if kind not in FAMILIES:
        return whole
    # What the whole says of its text part, in some releases.
    outer = {
        name: whole[name]
        for name in ("tie_word_embeddings", "auto_map", "architectures")
        if name in whole
    }
    return {**outer, **inner, "model_type": kind}


def _strange_code(whole: Json, written: Json, architecture: str) -> list[str]:
    """Notes on code that comes with a checkpoint, which may compute something else."""
    named = whole.get("architectures") or []
    named = [str(one) for one in (named if isinstance(named, list) else [named])]
    strange = [one for one in named if not one.startswith(architecture)]
    auto = whole.get("auto_map")
    if written.get("model_type") != whole.get("model_type") and not auto:
        strange = []  # the class of the whole, which reads images too
    if not auto and not strange:
        return []
    parts = [f"auto_map {json.dumps(auto)}"] if auto else []
    parts += [f"architectures {', '.join(strange)}"] if strange else []
    return [
        f"config.json: {' and '.join(parts)}: code that comes with a checkpoint is not "
        f"run, and the weights are read as transformers' own {architecture}; compare a "
        "few scores with the model card's"
    ]


def licence_of(folder: pathlib.Path) -> str:
    """The licence that a folder's model card declares; "" where it declares none."""
    path = folder / "README.md"
    if not path.is_file():
        return ""
    parts = path.read_text("utf-8", errors="replace").split("---", 2)
    front = parts[1] if len(parts) == 3 and not parts[0].strip() else ""
    found = re.search(r"^license:[ \t]*([\w.+-]+)", front, re.MULTILINE)
    return found[1] if found else ""


def find_tensors(folder: pathlib.Path) -> tuple[Tensors, str]:
    """Every tensor of a folder, and a digest of names, shapes and some numbers of each.

    Raises:
      ModelError: for missing, truncated or doubtful files, naming each.
    """
    tensors: Tensors = {}
    digest = hashlib.sha256()
    problems: list[str] = []
    listed = _list_files(folder)
    for path in dict.fromkeys(listed.values()):
        try:
            # The header is checked first; numbers are then read past a map, whose pages
            # would be fetched one by one.
            with safe_open(path, framework="np") as checked:
                names = list(checked.keys())
            with path.open("rb", buffering=0) as file:
                header, begin = _header(file)
                for name in names:
                    shape, dtype = tuple(header[name]["shape"]), header[name]["dtype"]
                    tensors[name] = Tensor(path, name, shape, dtype)
                    if dtype not in _DTYPES:
                        problems.append(
                            f"{path}: {name} has the dtype {dtype}, expected "
                            f"{', '.join(_DTYPES)}: save the model in float32 or "
                            "bfloat16"
                        )
                    else:
                        digest.update(repr((name, shape, dtype)).encode())
                        place = begin + header[name]["data_offsets"][0]
                        digest.update(_some_numbers(file, place, shape, dtype))
        except (OSError, SafetensorError) as error:
            problems.append(f"{path}: {error}; fetch the file again")
    problems += [
        f"{path}: {name} is not in it, and the index says so; fetch the file again"
        for name, path in listed.items()
        if name and name not in tensors and not problems
    ]
    if problems:
        raise ModelError("; ".join(problems))
    return tensors, digest.hexdigest()


def _header(file: Any) -> tuple[Json, int]:
    """The header of a file that has been checked, and where its numbers begin."""
    size = int.from_bytes(file.read(8), "little")
    return json.loads(file.read(size)), 8 + size


def _some_numbers(file: Any, begin: int, shape: tuple[int, ...], dtype: str) -> bytes:
    """Of the first rows, of those in the middle, and of the last."""
    width = _DTYPES[dtype]

    def read(start: int, count: int) -> bytes:
        file.seek(begin + start)
        return file.read(count)

    if not shape or 0 in shape:
        return read(0, width * math.prod(shape))
    inner = math.prod(shape[1:])
    count = max(1, _SAMPLE // inner)
    starts = sorted({0, max(shape[0] // 2 - count // 2, 0), max(shape[0] - count, 0)})
    if shape[0] <= 3 * count:
        starts, count = [0], shape[0]
    row = width * inner
    return b"".join(read(start * row, count * row) for start in starts)


def _list_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The file of every tensor that the index names; "" for a file without an index.

    A single file counts before an index, as for transformers: a small model that is
    saved over a large one leaves the large one's shards where they are.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists() or not index.is_file():
        if not whole.exists():
            raise ModelError(_say_no_weights(folder))
        return {"": whole}
    try:
        listed: dict[str, str] = read_model_json(index)["weight_map"]
        wrong = [
            name
            for name in listed.values()
            if pathlib.Path(name).name != name or "\0" in name
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: has no weight_map; fetch it again") from error
    if wrong:
        raise ModelError(f"{index}: {wrong[0]!r} is not a file of this folder")
    return {name: folder / file for name, file in listed.items()}


def _say_no_weights(folder: pathlib.Path) -> str:
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    if any(name.startswith("model-") for name in files):
        what = "parts of the weights but no model.safetensors.index.json; fetch it too"
    elif any(name.endswith((".bin", ".pt", ".pth")) for name in files):
        what = (
            "weights as pickles, which are not read; load it with transformers and "
            "save_pretrained it, which writes safetensors"
        )
    else:
        what = f"no model.safetensors; it holds {', '.join(files) or 'no file'}"
    return f"{folder}: the folder has {what}"


def _inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The folder of a module, which a file from a stranger names."""
    parts = pathlib.PurePosixPath(name).parts
    if ".." in parts or "/" in parts or "\0" in name:
        raise ModelError(
            f"{folder / 'modules.json'}: {name!r} is not in this folder; modules are "
            "read from below it alone"
        )
    return folder / name


@dataclass(frozen=True)
class ModuleHead:
    """How sentence-transformers scores with a folder's model, where it says so."""

    tensors: Tensors  # under the names below
    names: HeadNames | None = (
        None  # None: the head is the family's own, if there is one
    )
    tokens: tuple[int, ...] = ()  # ids: the score is the logit of one, less another's
    pooling: str = ""  # what the dense layers read
    activation: str = "none"  # between the two
    normed: bool = False  # after it
    biased: tuple[bool, bool] = (False, False)  # the pooler, and the score
    grades: int = 0  # logits whose softmax weighs the grades 0, 1, ...
    digest: str = ""  # of the modules' tensors


NO_HEAD = ModuleHead({})
# Names of a head's tensors that come from modules of their own.
_MODULES = HeadNames("modules.pooler", "modules.norm", "modules.score")
_ACTIVATIONS = {"GELU": "gelu", "Tanh": "tanh", "ReLU": "relu"}
_POOLINGS = {"cls": "cls", "lasttoken": "last", "mean": "mean"}
_NORM_EPS = 1e-5  # of sentence-transformers' LayerNorm module, which stores none


def read_head(folder: pathlib.Path) -> ModuleHead:
    """The head that modules.json describes; without one, nothing.

    Read are a pooling and a dense layer to one score, and in between a dense layer with
    an activation and a norm, as rerankers trained with sentence-transformers have them.

    Raises:
      ModelError: for modules that give no score that this package could give.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return NO_HEAD
    try:
        modules = [
            (m["type"].split(".")[-1], _inside(folder, m["path"]))
            for m in read_model_json(path)
        ]
        described = [
            (kind, where, _settings(where))
            for kind, where in modules
            if kind != "Dropout"
        ]
        last, _, fields = described[-1]
        if last == "LogitScore":
            tokens = (fields["true_token_id"], fields.get("false_token_id"))
            return ModuleHead(
                {}, tokens=tuple(token for token in tokens if token is not None)
            )
        if last == "Transformer" or fields.get("module_output_name") != "scores":
            return NO_HEAD  # a sequence classifier, or a text encoder
        return _read_modules(path, described)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({error!r})") from error


def _settings(where: pathlib.Path) -> Json:
    # Modules without settings, such as Normalize, come without a folder.
    described = where / "config.json"
    return read_model_json(described) if described.is_file() else {}


def _readable_pooling(path: pathlib.Path, settings: Json) -> str:
    pooling = _pooling_mode(settings)
    if pooling not in _POOLINGS:
        raise ModelError(
            f"{path}: pools by {pooling}; what can be read is {', '.join(_POOLINGS)}"
        )
    return pooling


def _read_modules(
    path: pathlib.Path, modules: list[tuple[str, pathlib.Path, Json]]
) -> ModuleHead:
    kinds = [kind for kind, _, _ in modules]
    dense = ["Transformer", "Pooling", "Dense"]
    if kinds not in (dense, [*dense, "Dense"], [*dense, "LayerNorm", "Dense"]):
        raise ModelError(
            f"{path}: scores by {' -> '.join(kinds)}; what can be read is Transformer "
            "-> Pooling -> Dense, with another Dense, or a Dense and a LayerNorm, "
            "between"
        )
    pooling = _readable_pooling(path, modules[1][2])
    last = modules[-1][2]
    inside = (last["out_features"], str(last.get("activation_function")))
    if inside[0] != 1 or not inside[1].endswith("Identity"):
        raise ModelError(
            f"{path}: scores by {inside[0]} outputs of {inside[1]}; only one output, "
            "without an activation, can be read"
        )
    bent = [where.name for _, where, fields in modules if fields.get("use_residual")]
    if bent:
        raise ModelError(
            f"{path}: {', '.join(bent)} has use_residual, which no head here adds"
        )
    if str(modules[2][2].get("activation_function")).endswith(".Softmax"):
        return _read_grades(path, modules, pooling)
    tensors, activation, digests = {}, "none", []

    def take(where: pathlib.Path, inside: str, name: str) -> Tensors:
        found, digest = find_tensors(where)
        digests.append(digest)
        return {n.replace(inside, f"{name}."): one for n, one in found.items()}

    if len(kinds) > 3:
        name = str(modules[2][2].get("activation_function")).split(".")[-1]
        if name not in _ACTIVATIONS:
            raise ModelError(
                f"{path}: the Dense in the middle has the activation {name}; what can "
                f"be read is {', '.join(_ACTIVATIONS)}"
            )
        activation = _ACTIVATIONS[name]
        tensors |= take(modules[2][1], "linear.", _MODULES.pooler)
    tensors |= take(modules[-1][1], "linear.", _MODULES.dense)
    normed = "LayerNorm" in kinds
    if normed:
        norm = take(modules[3][1], "norm.", _MODULES.norm)
        tensors |= _fold(tensors, norm.pop(f"{_MODULES.norm}.bias", None))
        tensors |= norm
    return ModuleHead(
        tensors=tensors,
        names=_MODULES,
        pooling=_POOLINGS[pooling],
        activation=activation,
        normed=normed,
        biased=(
            f"{_MODULES.pooler}.bias" in tensors,
            f"{_MODULES.dense}.bias" in tensors,
        ),
        digest=" ".join(digests),
    )


def _read_grades(
    path: pathlib.Path, modules: list[tuple[str, pathlib.Path, Json]], pooling: str
) -> ModuleHead:
    """A head whose score is the expected grade under a softmax of logits."""
    found = [find_tensors(where) for _, where, _ in modules[2:]]
    logits = found[0][0].get("linear.weight")
    grades = found[-1][0].get("linear.weight")
    plain = all(set(tensors) == {"linear.weight"} for tensors, _ in found)
    if len(found) != 2 or not plain or logits is None or grades is None:
        raise ModelError(
            f"{path}: of modules with a Softmax, what can be read is Transformer -> "
            "Pooling -> Dense with the Softmax -> Dense, both without a bias"
        )
    count = logits.shape[0]
    weights = grades.read().astype(np.float64)
    if not np.array_equal(weights, np.arange(count)[None]):
        raise ModelError(
            f"{path}: the Dense after the Softmax has the weights "
            f"{weights.ravel()[:8].tolist()}, and what can be read is grades from 0 "
            f"to {count - 1}"
        )
    return ModuleHead(
        tensors={f"{_MODULES.dense}.weight": logits},
        names=_MODULES,
        pooling=_POOLINGS[pooling],
        grades=count,
        digest=" ".join(digest for _, digest in found),
    )


def _pooling_mode(fields: Json) -> str:
    """One mode, as releases before 6 say it too: a flag for each."""
    if "pooling_mode" in fields:
        return str(fields["pooling_mode"])
    flags = {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_lasttoken": "lasttoken",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_max_tokens": "max",
        "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
        "pooling_mode_weightedmean_tokens": "weightedmean",
    }
    return " and ".join(mode for flag, mode in flags.items() if fields.get(flag))


def _fold(tensors: Tensors, bias: Tensor | Held | None) -> Tensors:
    """The bias of a norm before the score, as a part of the score's own bias."""
    if bias is None:
        return {}
    weight = tensors[f"{_MODULES.dense}.weight"].read().astype(np.float64)  # [1, D]
    value = weight @ bias.read().astype(np.float64)
    own = tensors.get(f"{_MODULES.dense}.bias")
    if own is not None:
        value = value + own.read().astype(np.float64)
    return {f"{_MODULES.dense}.bias": Held(value.astype(np.float32))}
