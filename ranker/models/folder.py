"""What a Hugging Face folder holds, told without its weights: config, tensors, heads.

Weights are only ever read from safetensors, never from pickles, and no code that comes
with a checkpoint is run.
"""

import hashlib
import json
import pathlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ranker.errors import ModelError
from ranker.models.families import KNOWN

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
# Second copies of the weights, for other tools.
_OTHERS = ["onnx/*", "openvino/*", "original/*", "consolidated*"]
_DTYPES = ("F32", "BF16", "F16", "F64", "I64")  # I64: buffers, which are ignored
# More would fill the memory with lists of their names.
_AT_MOST = {"num_hidden_layers": 1000, "num_labels": 100_000}
_SAMPLE = 4096  # numbers of a tensor that its digest is made from, at most


@dataclass(frozen=True)
class Tensor:
    """Where a tensor of a checkpoint is."""

    path: pathlib.Path  # its file
    name: str  # in that file
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A part of the tensor, in its own dtype.

        The file is opened for each part: a map that stays open would keep every page
        that was read in memory.

        Raises:
          ModelError: when the file cannot be read.
        """
        try:
            with safe_open(self.path, framework="np") as file:
                if not index:
                    return file.get_tensor(self.name)
                return file.get_slice(self.name)[index]
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{self.path}: {self.name}: {error}") from error


Tensors = dict[str, Tensor]


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


def read_json(path: pathlib.Path) -> Any:
    """A JSON file.

    Raises:
      ModelError: when it is missing or broken.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from error


def read_fields(folder: pathlib.Path) -> dict[str, Any]:
    """A folder's config.json with the defaults of its architecture.

    Of a model that also reads images, the part that reads text.

    Raises:
      ModelError: when there is none, or its architecture or weights are of no use here.
    """
    path = folder / "config.json"
    if not path.exists() and (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} holds adapters alone; merge them into the model that they were "
            "trained on (peft's merge_and_unload) and save that"
        )
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise ModelError(f"{path}: is not an object; expected a Hugging Face folder")
    if fields.get("model_type") == "gemma3":
        inner = fields.get("text_config")
        inner = inner if isinstance(inner, dict) else {}
        fields = {"model_type": "gemma3_text", **inner}
    if fields.get("quantization_config"):
        raise ModelError(
            f"{path}: the weights are quantised (quantization_config); use the "
            "checkpoint that they were made from"
        )
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in KNOWN:
        raise ModelError(
            f"{path}: model_type {kind!r} is unknown; known are {', '.join(KNOWN)}"
        )
    for name, most in _AT_MOST.items():
        found = fields.get(name, 0)
        if isinstance(found, (int, float)) and not found <= most:
            raise ModelError(f"{path}: {name} is {found:g}, and at most {most} is read")
    # transformers knows the defaults, and the names that older releases used.
    from transformers import AutoConfig

    try:
        kwargs = {k: v for k, v in fields.items() if k not in ("model_type", "dtype")}
        return AutoConfig.for_model(kind, **kwargs).to_dict()
    except Exception as error:  # transformers raises many kinds
        reason = " ".join(str(error).split())
        raise ModelError(f"{path}: transformers cannot read it: {reason}") from error


def find_tensors(folder: pathlib.Path) -> tuple[Tensors, str]:
    """Every tensor of a folder, and a digest of their names, shapes and first numbers.

    Raises:
      ModelError: for missing, truncated or doubtful files, naming each.
    """
    tensors: Tensors = {}
    digest = hashlib.sha256()
    problems: list[str] = []
    listed = _list_files(folder)
    for path in dict.fromkeys(listed.values()):
        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    part = file.get_slice(name)
                    shape, dtype = tuple(part.get_shape()), part.get_dtype()
                    tensors[name] = Tensor(path, name, shape, dtype)
                    if dtype not in _DTYPES:
                        problems.append(
                            f"{path}: {name} has the dtype {dtype}, expected "
                            f"{', '.join(_DTYPES)}: save the model in float32 or "
                            "bfloat16"
                        )
                    else:
                        digest.update(repr((name, shape, dtype)).encode())
                        digest.update(_first_numbers(file, part, name, shape))
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


def _first_numbers(file: Any, part: Any, name: str, shape: tuple[int, ...]) -> bytes:
    if not shape or 0 in shape:
        return file.get_tensor(name).tobytes()
    rows = max(1, _SAMPLE // int(np.prod(shape[1:], dtype=np.int64)))
    return np.ascontiguousarray(part[: min(rows, shape[0])]).tobytes()


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
        listed: dict[str, str] = read_json(index)["weight_map"]
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
class Head:
    """How sentence-transformers scores with a folder's model, where it says so."""

    tensors: Tensors  # of a dense layer behind the last token, as `score.*`
    tokens: tuple[int, ...]  # ids: the score is the logit of one, or less another's


def read_head(folder: pathlib.Path) -> Head:
    """The head that modules.json describes; without one, nothing.

    Raises:
      ModelError: for modules that give no score that this package could give.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return Head({}, ())
    try:
        modules = [
            (m["type"].split(".")[-1], _inside(folder, m["path"]))
            for m in read_json(path)
        ]
        last, where = modules[-1]
        described = where / "config.json"
        # Modules without settings, such as Normalize, come without a folder.
        fields = read_json(described) if described.is_file() else {}
        if last == "LogitScore":
            tokens = (fields["true_token_id"], fields.get("false_token_id"))
            return Head({}, tuple(token for token in tokens if token is not None))
        if fields.get("module_output_name") != "scores":
            return Head({}, ())  # a text encoder
        pooling = read_json(modules[-2][1] / "config.json").get("pooling_mode")
        inside = (fields["out_features"], str(fields.get("activation_function")))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{path}: cannot be read ({error!r})") from error
    if pooling != "lasttoken" or inside[0] != 1 or "Identity" not in inside[1]:
        raise ModelError(
            f"{path}: scores by {inside[0]} outputs of {inside[1]} behind pooling by "
            f"{pooling}; only one output, without an activation, behind the last token "
            "can be read"
        )
    tensors, _ = find_tensors(where)
    return Head(
        {name.replace("linear.", "score."): one for name, one in tensors.items()}, ()
    )
