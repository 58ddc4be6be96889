"""The headers of published checkpoints, as folders whose files are all holes."""

import json
import math
import pathlib

PUBLISHED = json.loads(
    (pathlib.Path(__file__).parent / "parity" / "published.json").read_text("utf-8")
)
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}


def write_header(folder: pathlib.Path, published: dict) -> int:
    """The published folder, its file all holes; returns how many tensors there are."""
    folder.mkdir(parents=True, exist_ok=True)
    header, at = {}, 0
    for pattern, (dtype, shape, *layers) in published["tensors"].items():
        numbers = range(*layers[0]) if layers else [0]
        for i in numbers:
            size = WIDTHS[dtype] * math.prod(shape)
            offsets = [at, at + size]
            name = pattern.replace("{i}", str(i))
            header[name] = dict(dtype=dtype, shape=shape, data_offsets=offsets)
            at += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    (folder / "config.json").write_text(json.dumps(published["config"]))
    return len(header)
