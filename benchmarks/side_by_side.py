"""What the speed benchmarks share: texts, weights, our step, timing and the report."""

import argparse
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from shapes import matmul_flops, mean_context

from ranker import config, sharding
from ranker.data import pipeline
from ranker.data.pairs import Indexed, ListEncoder
from ranker.data.prepare import Prepared, prepare
from ranker.data.records import Document, RankedList
from ranker.models.huggingface import import_params, open_checkpoint
from ranker.training import objectives, optim, state, step, weights
from ranker.training import scorer as scoring

# A GPU is shared with the baseline: jax, which has not started yet, then takes what it
# uses and not three quarters at once.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Queries of Google users and paragraphs of Wikipedia; where absent, the synthetic
# collection.
REAL = ROOT.parent / "shared" / "data" / "nqqed"


def make_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The flags that all speed benchmarks take."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workdir", type=pathlib.Path, default=pathlib.Path("runs/benchmarks"))
    add("--data", default=str(REAL) if REAL.is_dir() else "", help="BEIR folder")
    add("--queries", type=int, default=400, help="queries read")
    add("--model", default="", help="Hugging Face folder; empty: random weights")
    add("--length", type=int, default=512, help="tokens a text, at most")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--rounds", type=int, default=3, help="times that both are measured")
    for name, (value, meaning) in defaults.items():
        add(f"--{name}", type=type(value), default=value, help=meaning)
    return parser


@dataclass(frozen=True)
class Setting:
    """Texts and weights that both sides get."""

    prepared: Prepared
    folder: pathlib.Path  # model and tokenizer, as Hugging Face reads them
    role: config.Role
    length: int
    dtype: config.DType

    @property
    def encoder(self) -> ListEncoder:
        """Our tokenised texts."""
        tokenizer = self.prepared.tokenizer(self.role)
        return ListEncoder(self.prepared.corpus(), tokenizer, self.length)


def random_bert(args: argparse.Namespace, vocab: int, pad: int) -> Any:
    """A torch BERT of random weights, with the heads that MiniLM or BERT-base has."""
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=vocab,
            pad_token_id=pad,
            num_hidden_layers=args.layers,
            hidden_size=args.embed,
            num_attention_heads=args.embed // (64 if args.embed >= 768 else 32),
            intermediate_size=4 * args.embed,
            num_labels=1,
        )
    )


def set_up(args: argparse.Namespace, role: config.Role, make: Callable) -> Setting:
    """Prepares texts; `make(vocab, pad)` gives a random torch model without `--model`.

    Without a model the tokenizer is trained on the texts.
    """
    name = pathlib.Path(args.data).name or "world"
    workdir = args.workdir / f"{name}-{role}-{pathlib.Path(args.model).name or 'made'}"
    size = 8192 if role == "teacher" else 30522
    given: dict[str, Any] = {
        f"{role}_length": args.length,
        f"{role}_vocab_size": size,
        f"{role}_tokenizer": args.model,
    }
    data = config.Data(
        path=args.data, candidates=20, max_queries=args.queries, on_error="skip"
    )
    prepared = prepare(data, config.Text(**given), workdir, replace=True)
    folder = pathlib.Path(args.model) if args.model else workdir / "model"
    if not args.model:
        loaded = prepared.tokenizer(role).loaded
        loaded.save_pretrained(str(folder))
        make(len(loaded), loaded.pad_token_id).save_pretrained(str(folder))
    return Setting(prepared, folder, role, args.length, args.dtype)


class Ours:
    """Our model from the same folder, on all devices of this machine."""

    def __init__(
        self,
        setting: Setting,
        *,
        folder: pathlib.Path | None = None,
        dropout: float = -1.0,
        remat: bool = False,
    ):
        self.setting = setting
        self.mesh = sharding.make_mesh(config.Mesh())
        described = config.Pretrained(
            path=str(folder or setting.folder),
            dtype=setting.dtype,
            dropout=dropout,
            remat="full" if remat else "none",
        )
        checkpoint = open_checkpoint(described)
        self.model, vocab = checkpoint.model, checkpoint.vocab_size
        self.network = state.make_network(self.model, vocab, "score", self.mesh)
        taken, _ = import_params(
            checkpoint, "score", self.network.abstract, self.network.shardings
        )
        self.params = weights.complete_params(
            taken, self.network, self.model, vocab, "score", seed=0
        )

    def train_steps(
        self, objective: config.ObjectiveSettings, batch: config.Batch, rate: float
    ) -> Callable[[int], tuple[int, float]]:
        """What makes so many steps and returns (real tokens, seconds)."""
        made = objectives.make_objective(
            objective, groups=sharding.num_shards(self.mesh)
        )
        settings = config.Optim(learning_rate=rate, warmup=1)
        tx = optim.make_optimizer(settings, 1000, self.network.abstract)
        current = [state.init_state(self.network, self.params, tx, 0)]
        compiled = step.make_step(self.network, made, tx, current[0])
        batches = pipeline.list_batches(
            self.setting.prepared.lists("train"),
            self.setting.encoder,
            batch=batch,
            seed=0,
            shards=scoring.shards_of(self.network),
        )

        def run(steps: int) -> tuple[int, float]:
            tokens, loss = 0, jnp.zeros(())
            start = time.perf_counter()
            with jax.set_mesh(self.mesh):
                for _ in range(steps):
                    given = next(batches)
                    tokens += int((given.rows.segments > 0).sum())
                    placed = scoring.device_batch(given, self.network, leading=1)
                    current[0], metrics = compiled(current[0], placed)
                    loss = metrics["loss"]
                assert np.isfinite(float(loss))
            return tokens, time.perf_counter() - start

        return run


Run = Callable[[], tuple[int, float]]  # -> (real tokens, seconds)


def compare(ours: Run, theirs: dict[str, Run], rounds: int) -> dict[str, Any]:
    """Runs both in turn; rates in real tokens a second, and their ratios."""
    rates: dict[str, list[float]] = {"ours": [], **{name: [] for name in theirs}}
    for number in range(rounds):
        for name, run in {"ours": ours, **theirs}.items():
            tokens, seconds = run()
            rates[name].append(tokens / seconds)
            print(
                f"round {number + 1}  {name}: {tokens:,} real tokens in {seconds:.1f} s"
                f" = {tokens / seconds:,.0f} tokens/s",
                flush=True,
            )
    found: dict[str, Any] = {
        "tokens_per_second": {
            name: {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
            }
            for name, values in rates.items()
        }
    }
    for name in theirs:
        ratios = [a / b for a, b in zip(rates["ours"], rates[name], strict=True)]
        found[f"ratio_{name}"] = {
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
        }
    return found


def report(found: dict[str, Any], args: argparse.Namespace, **facts: Any) -> None:
    """Prints the ratios, and one JSON object as the last line."""
    names = [name for name in found if name.startswith("ratio_")]
    for name in names:
        one = found[name]
        print(
            f"{name.removeprefix('ratio_')}: ours is {one['median']:.2f} times as fast "
            f"({one['min']:.2f} to {one['max']:.2f} over {args.rounds} rounds)"
        )
    settings = {
        key: str(value) if isinstance(value, pathlib.Path) else value
        for key, value in vars(args).items()
    }
    ratio = found[names[0]]["median"]
    device = jax.devices()[0]
    print(
        json.dumps(
            {
                "ratio": ratio,
                **found,
                **facts,
                "device": f"{len(jax.devices())} x {device.device_kind}",
                "settings": settings,
            }
        )
    )


def report_share(
    found: dict[str, Any], args: argparse.Namespace, *, flops: float, side: int, **facts
) -> None:
    """`report`, with the share of the arithmetic of this machine that ours uses.

    Args:
      found: what `compare` returns.
      args: the flags.
      flops: what the model needs for a real token.
      side: of the square matrices whose product is what this machine can do.
      **facts: for the JSON object.
    """
    peak = matmul_flops(side, args.dtype)
    rate = found["tokens_per_second"]["ours"]["median"]
    print(
        f"ours: {flops / 1e6:.1f} MFLOP a real token, {rate * flops / 1e9:,.0f} of the "
        f"{peak / 1e9:,.0f} GFLOP/s that a matrix product reaches here "
        f"({rate * flops / peak:.0%})"
    )
    report(found, args, **facts, mfu=rate * flops / peak, matmul_flops=peak)


def pairs_of(lists: Indexed[RankedList], corpus: Indexed[Document], size: int = 0):
    """(query, document) texts of the first `size` documents of each list; 0: all."""
    found = []
    for number in range(len(lists)):
        record = lists[number]
        for row in record.documents[: size or None]:
            document = corpus[int(row)]
            found.append((record.query, f"{document.title} {document.text}".strip()))
    return found


def context_of(setting: Setting, size: int) -> float:
    """`mean_context` of the first documents of the lists that are trained on."""
    lists, encoder = setting.prepared.lists("train"), setting.encoder
    lengths = [
        len(segment.tokens)
        for number in range(min(len(lists), 200))
        for segment in encoder(lists[number].query, lists[number].documents[:size])
    ]
    return mean_context(np.array(lengths))
