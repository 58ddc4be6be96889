"""Scores golden pairs by sentence-transformers' ONNX backend, from the pairs' texts.

python onnx_backend.py FOLDER    an export; fails where a score is not the contract's
"""

import json
import pathlib
import sys

import numpy as np
import torch
from optimum.onnxruntime import ORTModelForSequenceClassification
from sentence_transformers import CrossEncoder


def main(folder: pathlib.Path) -> None:
    """Checks one folder."""
    contract = json.loads((folder / "ranker_contract.json").read_text())
    provider = {"provider": "CPUExecutionProvider"}
    model = CrossEncoder(str(folder), backend="onnx", model_kwargs=provider)
    assert isinstance(model.model, ORTModelForSequenceClassification), type(model.model)
    assert model.model.path.name == "model.onnx", model.model.path
    golden = contract["golden"]
    pairs = [(one["query"], f"{one['title']} {one['text']}".strip()) for one in golden]
    scores = model.predict(pairs, activation_fn=torch.nn.Identity())
    expected = np.array([one["score"] for one in golden])
    worst = np.abs(scores - expected).max() / contract["scores"]["std"]
    print(f"{folder.name}: largest difference {worst:.1e} standard deviations")
    raise SystemExit(not worst < 1e-4)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
