"""Host memory of checkpoints of a billion parameters, and the time to plan imports.

    python benchmarks/checkpoint_memory.py [--dtype bfloat16] [--layers 16]

Writes a random Llama of the sizes of Llama 3.2 1B as sharded safetensors (2.5 GB in
bfloat16). Each of these is a child process, and a line of JSON:

- `import`: onto 8 CPU devices (fsdp 4, tensor 2). The child's peak resident memory, of
  which the parameters themselves are part, over the bytes of the parameters, float32.
- `plain`: the same with `jax.make_array_from_callback`, for comparison.
- `export`: parameters held in bfloat16 are written as bfloat16 in shards of 1 GB. Peak
  resident memory (with the parameters, without the 1 GB of Python and its libraries
  before any is read) over the bytes of the files.
- `plan`: eight published headers (tests/parity/published.json) are opened and planned,
  as `ranker.run` does before any work. Seconds, after transformers has been imported.

Fails when a ratio is over 1.25, or planning takes over 2 seconds of a CPU.
"""

import argparse
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

LIMIT = 1.25
SECONDS = 2.0
TESTS = pathlib.Path(__file__).parents[1] / "tests"
SIZES = dict(hidden=2048, intermediate=8192, heads=32, kv_heads=8, vocab=128_256)


def described(layers: int) -> dict:
    """config.json of the Llama."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": SIZES["hidden"],
        "intermediate_size": SIZES["intermediate"],
        "num_hidden_layers": layers,
        "num_attention_heads": SIZES["heads"],
        "num_key_value_heads": SIZES["kv_heads"],
        "vocab_size": SIZES["vocab"],
        "tie_word_embeddings": True,
    }


def shapes_of_ends() -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors outside the layers."""
    D, V = SIZES["hidden"], SIZES["vocab"]
    return {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}


def shapes_of_layer(number: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of a layer."""
    D, F = SIZES["hidden"], SIZES["intermediate"]
    kv = SIZES["kv_heads"] * (D // SIZES["heads"])
    shapes = {
        "input_layernorm": (D,),
        "post_attention_layernorm": (D,),
        "self_attn.q_proj": (D, D),
        "self_attn.k_proj": (kv, D),
        "self_attn.v_proj": (kv, D),
        "self_attn.o_proj": (D, D),
        "mlp.gate_proj": (F, D),
        "mlp.up_proj": (F, D),
        "mlp.down_proj": (D, F),
    }
    return {f"model.layers.{number}.{k}.weight": one for k, one in shapes.items()}


def write(folder: pathlib.Path, layers: int, dtype: str) -> int:
    """A random checkpoint in `dtype`, a file for every two layers; its parameters."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    (folder / "config.json").write_text(json.dumps(described(layers)))
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    generator = np.random.default_rng(0)
    block = (0.02 * generator.standard_normal(1 << 20, np.float32)).astype(kind)
    groups = [shapes_of_ends()]
    for first in range(0, layers, 2):
        pair = range(first, min(first + 2, layers))
        groups.append({k: v for i in pair for k, v in shapes_of_layer(i).items()})
    where, count = {}, 0
    for number, shapes in enumerate(groups, start=1):
        tensors = {name: np.resize(block, shape) for name, shape in shapes.items()}
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file(tensors, folder / file)
        where |= dict.fromkeys(tensors, file)
        count += sum(value.size for value in tensors.values())
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return count


def child(folder: str, way: str) -> None:
    """Does one of the things and prints what it took."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    ways = {"import": import_one, "plain": import_one, "export": export_one}
    if way == "plan":
        result = plan_eight(pathlib.Path(folder))
    else:
        result = ways[way](folder, way)
    print(json.dumps(result))


def peak() -> int:
    """Peak resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def taken(folder: str, dtype: str, **mesh: int) -> tuple:
    """The checkpoint, and its parameters on a mesh in a dtype."""
    import jax

    from ranker import config, sharding
    from ranker.models import huggingface
    from ranker.training.state import make_network

    checkpoint = huggingface.open_checkpoint(config.Pretrained(path=folder))
    devices = sharding.make_mesh(config.Mesh(**mesh))
    network = make_network(checkpoint.model, checkpoint.vocab_size, "language", devices)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), network.abstract
    )
    params, _ = huggingface.import_params(
        checkpoint, "language", abstract, network.shardings
    )
    return checkpoint, abstract, jax.block_until_ready(params)


def import_one(folder: str, way: str) -> dict:
    """Memory of an import onto eight devices."""
    import jax

    from ranker.models import huggingface

    if way == "plain":

        def place(read, shape, where):
            def whole(index):
                parts = zip(index, shape, strict=True)
                return read(tuple(slice(*p.indices(size)[:2]) for p, size in parts))

            return jax.make_array_from_callback(shape, where, whole)

        huggingface._place = place
    start = time.perf_counter()
    _, _, params = taken(folder, "float32", fsdp=4, tensor=2)
    size = sum(value.nbytes for value in params.values())
    return {
        "parameters": sum(value.size for value in params.values()),
        "parameter_gib": round(size / 2**30, 2),
        "peak_gib": round(peak() / 2**30, 2),
        "ratio": round(peak() / size, 3),
        "seconds": round(time.perf_counter() - start, 1),
    }


def export_one(folder: str, way: str) -> dict:
    """Memory of an export, of parameters that are bfloat16."""
    del way
    import jax
    import jax.numpy as jnp

    from ranker.data.text import train_bpe
    from ranker.models import exporting
    from ranker.models.params import unflat

    exporting.SHARD_BYTES = 1_000_000_000
    from transformers import AutoConfig

    AutoConfig.for_model("llama")
    jax.block_until_ready(jnp.zeros(8))
    base = peak()
    checkpoint, abstract, params = taken(folder, "bfloat16", fsdp=4, tensor=2)
    before, start = peak(), time.perf_counter()
    out, tokenizer = pathlib.Path(folder, "out"), pathlib.Path(folder, "tokenizer")
    train_bpe(iter(["low fares to rome"] * 3), 300, tokenizer)
    exporting.export_huggingface(
        out,
        checkpoint.model,
        unflat(params, abstract),
        head="language",
        tokenizer=tokenizer,
        length=512,
        dtype="bfloat16",
    )
    files = sorted(out.glob("model-*.safetensors"))
    assert len(files) > 2 and (out / "model.safetensors.index.json").is_file()
    size = sum(file.stat().st_size for file in files)
    return {
        "files": len(files),
        "base_gib": round(base / 2**30, 2),
        "file_gib": round(size / 2**30, 2),
        "before_gib": round(before / 2**30, 2),
        "peak_gib": round(peak() / 2**30, 2),
        "ratio": round((peak() - base) / size, 3),
        "seconds": round(time.perf_counter() - start, 1),
    }


def plan_eight(folder: pathlib.Path) -> dict:
    """Seconds to plan the import of eight checkpoints, as published."""
    sys.path.insert(0, str(TESTS))
    from published import PUBLISHED, write_header
    from transformers import AutoConfig

    from ranker import config
    from ranker.models.huggingface import open_checkpoint

    AutoConfig.for_model("bert")  # the library loads what it needs
    names = []
    for name, one in PUBLISHED.items():
        if len(names) < 8 and one["config"].get("num_hidden_layers", 0) >= 12:
            names.append(name)
            write_header(folder / str(len(names)), one)
    start, busy = time.perf_counter(), time.process_time()
    for number, name in enumerate(names, start=1):
        path = str(folder / str(number))
        open_checkpoint(config.Pretrained(path=path)).match(PUBLISHED[name]["head"])
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    return {
        "planned": names,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(busy, 2),
    }


def main() -> None:
    """Writes the checkpoint and measures each thing in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=16, help="16: 1.24 billion")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    ways = ("import", "plain", "export", "plan")
    parser.add_argument("--only", choices=ways, nargs="*", default=ways)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    folder = pathlib.Path(tempfile.mkdtemp(prefix="checkpoint_memory"))
    failed = []
    try:
        if set(arguments.only) - {"plan"}:
            write(folder, arguments.layers, arguments.dtype)
        for way in arguments.only:
            place = folder / "plan" if way == "plan" else folder
            done = subprocess.run(
                [sys.executable, __file__, "--child", str(place), way],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise SystemExit(done.stderr)
            result = json.loads(done.stdout.splitlines()[-1])
            print(json.dumps({"way": way, **result}), flush=True)
            slow = way == "plan" and result["cpu_seconds"] > SECONDS
            large = way in ("import", "export") and result["ratio"] > LIMIT
            failed += [way] if slow or large else []
    finally:
        shutil.rmtree(folder)
    if failed:
        raise SystemExit(f"over the limit: {', '.join(failed)}")


if __name__ == "__main__":
    main()
