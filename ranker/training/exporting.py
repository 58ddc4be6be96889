"""`export`: a trained student as a Hugging Face folder."""

import pathlib

from ranker import config, manifest, sharding
from ranker.data.prepare import prepare
from ranker.models.huggingface import export_huggingface
from ranker.training.trained import load_trained


def export(
    settings: config.Export, workdir: pathlib.Path, *, replace: bool = False
) -> pathlib.Path:
    """Writes WORKDIR/FOLDER, which stock tools load as it is; returns the folder.

    Raises:
      ConfigError, DataError, StageError: with what is wrong and what to do.
    """
    prepared = prepare(settings.data, settings.text, workdir, replace=replace)
    kinds, by = ("sft", "distill"), "the export stage"
    student = manifest.require(workdir, settings.student, kinds=kinds, by=by)
    folder = workdir / settings.folder
    account = manifest.Manifest(
        kind="export",
        settings={},
        inputs={"prepare": prepared.account.key, settings.student: student.key},
    )
    if manifest.is_done(folder, account, replace=replace):
        return folder
    mesh = sharding.make_mesh(settings.mesh)
    trained = load_trained(
        workdir, settings.student, prepared, mesh, kinds=kinds, by=by
    )
    if not isinstance(trained.model, config.Encoder):
        raise manifest.StageError(
            f"{by} writes students, and {settings.student!r} is a decoder"
        )
    export_huggingface(
        folder,
        trained.model,
        trained.params,
        tokenizer=prepared.tokenizer_folder(trained.kind),
        length=trained.length,
    )
    account.finish(folder, student=settings.student, length=trained.length)
    print(f"[export] {settings.student} is in {folder}", flush=True)
    return folder
