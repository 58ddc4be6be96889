"""What a training stage trains: a model that its config describes, or a checkpoint."""

import dataclasses

from ranker import config
from ranker.data.prepare import Prepared
from ranker.models.huggingface import Checkpoint, open_checkpoint
from ranker.training.imports import template_answers


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a stage trains: the model, and the checkpoint that it is, if it is one."""

    model: config.Decoder | config.Encoder
    role: config.Role
    vocab_size: int  # rows of the embeddings
    checkpoint: Checkpoint | None


def find_origin(settings: config.Train, prepared: Prepared) -> Origin:
    """The model of a stage, whether the config describes or names it.

    Raises:
      ConfigError: when the model cannot read the prepared text.
      ModelError: when a checkpoint cannot be read.
    """
    model, checkpoint = settings.model, None
    if isinstance(model, config.Pretrained):
        checkpoint = open_checkpoint(model, template_answers(settings))
        model = checkpoint.model
    decoder = isinstance(model, config.Decoder) and model.causal
    role = settings.role
    if role == "auto":
        role = "teacher" if decoder else "student"
    stage = f"stage {settings.name!r}"
    if isinstance(settings.objective, config.Language) and not decoder:
        raise config.ConfigError(
            f"{stage}: the language objective needs a decoder, found an encoder"
        )
    template = settings.text.of(role, "template")
    either = model.causal != isinstance(model, config.Decoder)  # EuroBERT and the like
    if not either and decoder == (template == "pair"):
        fitting = "another than 'pair'" if decoder else "'pair'"
        raise config.ConfigError(
            f"{stage}: text.{role}_template is {template!r}, and "
            f"{'a decoder' if decoder else 'an encoder'} needs {fitting}"
        )
    length = settings.text.of(role, "length")
    positions = 0 if isinstance(model, config.Decoder) else model.max_positions
    if positions and length > positions:
        raise config.ConfigError(
            f"{stage}: text.{role}_length {length} is over model.max_positions "
            f"{positions}"
        )
    if checkpoint and not settings.text.of(role, "tokenizer"):
        raise config.ConfigError(
            f"{stage}: text.{role}_tokenizer is empty, so one was trained, and "
            f"{model_name(settings)} reads its own; set --config.text.{role}_tokenizer="
            f"{model_name(settings)}"
        )
    tokens = prepared.facts.of_role(role).vocab_size
    rows = checkpoint.vocab_size if checkpoint else tokens
    if tokens > rows:
        raise config.ConfigError(
            f"{stage}: the tokenizer has {tokens} tokens, and {model_name(settings)} "
            f"has embeddings for {rows}; set text.{role}_tokenizer to the tokenizer "
            "of that checkpoint"
        )
    return Origin(model, role, rows, checkpoint)


def check_scores(settings: config.Train, origin: Origin) -> None:
    """Refuses a ranker without steps whose score head would be drawn at random.

    Raises:
      ConfigError: saying what scores.
    """
    if settings.parent or (
        origin.checkpoint and origin.checkpoint.match("score").scores
    ):
        return
    raise config.ConfigError(
        f"stage {settings.name!r} has loop.steps=0, and {model_name(settings)} has no "
        "score head, so its scores would be random; set loop.steps, or name a "
        "checkpoint that scores: a sequence classifier of one label, or a language "
        f"model with the words that it answers (text.{origin.role}_template "
        "qwen3_reranker or bge_reranker_gemma, or model.score_tokens)"
    )


def model_name(settings: config.Train) -> str:
    """The checkpoint's path, for messages."""
    model = settings.model
    return model.path if isinstance(model, config.Pretrained) else "the model"
