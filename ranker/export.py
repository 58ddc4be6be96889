"""Writes a trained student as a Hugging Face folder.

python -m ranker.export --config configs/export.py --workdir DIR
"""

from ranker import cli, config


def _call():
    from ranker.training.export import export

    return export


if __name__ == "__main__":
    cli.main(config.Export, _call, "Writes a trained student as a Hugging Face folder.")
