"""`export`: a trained model as a Hugging Face folder."""

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
    kinds, by = ("cpt", "sft", "distill"), "the export stage"
    parent = manifest.require(workdir, settings.stage, kinds=kinds, by=by)
    folder = workdir / settings.folder
    account = manifest.Manifest(
        kind="export",
        settings={},
        inputs={"prepare": prepared.account.key, settings.stage: parent.key},
    )
    if manifest.is_done(folder, account, replace=replace):
        return folder
    mesh = sharding.make_mesh(settings.mesh)
    trained = load_trained(workdir, settings.stage, prepared, mesh, kinds=kinds, by=by)
    export_huggingface(
        folder,
        trained.model,
        trained.params,
        head="language" if trained.account.kind == "cpt" else "score",
        tokenizer=prepared.tokenizer_folder(trained.role),
        length=trained.length,
    )
    account.finish(folder, stage=settings.stage, length=trained.length)
    print(f"[export] {settings.stage} is in {folder}", flush=True)
    return folder
