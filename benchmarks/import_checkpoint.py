"""Host memory while a checkpoint of a billion parameters is imported onto a mesh.

    python benchmarks/import_checkpoint.py [--dtype bfloat16] [--layers 16]

Writes a random Llama of the sizes of Llama 3.2 1B as sharded safetensors (2.5 GB in
bfloat16), imports it in a child process onto 8 CPU devices (fsdp 4, tensor 2), and
prints one line of JSON: the child's peak resident memory, of which the parameters
themselves are part, over the bytes of the parameters, float32. A second child imports
with `jax.make_array_from_callback`, the plain way, for comparison. Fails when the
ratio is over 1.25.
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
SIZES = dict(hidden=2048, intermediate=8192, heads=32, kv_heads=8, vocab=128_256)


def write(folder: pathlib.Path, layers: int, dtype: str) -> int:
    """A random checkpoint in `dtype`, a file for every two layers; its parameters."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    D, F, V = SIZES["hidden"], SIZES["intermediate"], SIZES["vocab"]
    H = D // SIZES["heads"]
    kv = SIZES["kv_heads"] * H
    described = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": layers,
        "num_attention_heads": SIZES["heads"],
        "num_key_value_heads": SIZES["kv_heads"],
        "vocab_size": V,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(described))
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    generator = np.random.default_rng(0)
    block = (0.02 * generator.standard_normal(1 << 20, np.float32)).astype(kind)

    def random(*shape: int):
        return np.resize(block, shape)

    def layer(i: int) -> dict:
        name = f"model.layers.{i}."
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
        return {f"{name}{k}.weight": random(*shape) for k, shape in shapes.items()}

    ends = {
        "model.embed_tokens.weight": random(V, D),
        "model.norm.weight": random(D),
    }
    groups = [lambda: ends] + [
        lambda i=i: {
            k: v for j in (i, i + 1) if j < layers for k, v in layer(j).items()
        }
        for i in range(0, layers, 2)
    ]
    where, count = {}, 0
    for number, group in enumerate(groups, start=1):
        tensors = group()
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file(tensors, folder / file)
        where |= dict.fromkeys(tensors, file)
        count += sum(value.size for value in tensors.values())
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return count


def child(folder: str, plain: bool) -> None:
    """Imports the checkpoint and prints what it took."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    from ranker import config, sharding
    from ranker.models import huggingface
    from ranker.training.state import make_network

    if plain:

        def place(read, shape, where):
            def whole(index):
                parts = zip(index, shape, strict=True)
                return read(tuple(slice(*p.indices(size)[:2]) for p, size in parts))

            return jax.make_array_from_callback(shape, where, whole)

        huggingface._place = place
    start = time.perf_counter()
    checkpoint = huggingface.open_checkpoint(config.Pretrained(path=folder))
    mesh = sharding.make_mesh(config.Mesh(fsdp=4, tensor=2))
    network = make_network(checkpoint.model, checkpoint.vocab_size, "language", mesh)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    params, _ = huggingface.import_params(
        checkpoint, "language", network.abstract, network.shardings
    )
    jax.block_until_ready(params)
    size = sum(value.nbytes for value in params.values())
    held = sum(
        shard.data.nbytes for one in params.values() for shard in one.addressable_shards
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps(
            {
                "parameters": sum(value.size for value in params.values()),
                "parameter_gib": round(size / 2**30, 2),
                "held_gib": round(held / 2**30, 2),
                "before_gib": round(before / 2**30, 2),
                "peak_gib": round(peak / 2**30, 2),
                "ratio": round(peak / size, 3),
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
    )


def main() -> None:
    """Writes the checkpoint and measures both ways of importing it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=16, help="16: 1.24 billion")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child[0], arguments.child[1] == "plain")
        return
    folder = pathlib.Path(tempfile.mkdtemp(prefix="import_checkpoint"))
    try:
        count = write(folder, arguments.layers, arguments.dtype)
        results = {}
        for way in ("ours", "plain"):
            done = subprocess.run(
                [sys.executable, __file__, "--child", str(folder), way],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise SystemExit(done.stderr)
            results[way] = json.loads(done.stdout.splitlines()[-1])
            assert results[way]["parameters"] == count
        print(json.dumps({"source": arguments.dtype, **results}))
    finally:
        shutil.rmtree(folder)
    if results["ours"]["ratio"] > LIMIT:
        raise SystemExit(f"the ratio {results['ours']['ratio']} is over {LIMIT}")


if __name__ == "__main__":
    main()
