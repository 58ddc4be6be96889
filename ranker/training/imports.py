"""Checkpoints are opened before work starts: what cannot be read is said at once."""

import pathlib
from collections.abc import Iterable

from ranker import config
from ranker.data.text import answers_of
from ranker.errors import ModelError, UserError
from ranker.models.huggingface import Checkpoint, open_checkpoint


def check_imports(stages: Iterable[config.Stage], *, fetch: bool = True) -> list[str]:
    """Plans the import of every checkpoint that stages name, by names and shapes alone.

    Args:
      stages: of a run.
      fetch: whether a hub name that is not here yet is fetched; else it is left out.

    Returns:
      One line for each checkpoint: what was found, or that it is not here.

    Raises:
      ModelError: with the problems of all, together.
    """
    said: dict[str, None] = {}
    problems: dict[str, None] = {}
    opened: dict[tuple, Checkpoint] = {}
    for stage in stages:
        if not isinstance(stage, config.Train):
            continue
        model = stage.model
        if not isinstance(model, config.Pretrained):
            continue
        if not fetch and not pathlib.Path(model.path).is_dir():
            said[f"{model.path}: no folder, so it is opened when it is fetched"] = None
            continue
        try:
            key = (model, template_answers(stage))
            if key not in opened:
                opened[key] = open_checkpoint(*key)
            said[_plan(stage, opened[key])] = None
        except UserError as error:
            problems[str(error)] = None
    if problems:
        raise ModelError("\n".join(problems))
    return list(said)


def _plan(stage: config.Train, checkpoint: Checkpoint) -> str:
    """Raises for tensors that do not fit; else says what they are."""
    head = "language" if isinstance(stage.objective, config.Language) else "score"
    if head == "language" and isinstance(checkpoint.model, config.Encoder):
        raise config.ConfigError(
            f"stage {stage.name!r}: the language objective needs a decoder, and "
            f"{checkpoint.folder} is an encoder"
        )
    if not stage.parent:
        checkpoint.match(head)
    model = checkpoint.model
    return (
        f"{checkpoint.folder}: {model.family}, {model.num_layers} layers, "
        f"{checkpoint.gib:.2f} GiB: can be read"
    )


def template_answers(settings: config.Train) -> tuple[str, ...]:
    """The words that the teacher's template asks for; a language model needs none."""
    if settings.role == "student" or isinstance(settings.objective, config.Language):
        return ()
    return answers_of(settings.text.teacher_template)
