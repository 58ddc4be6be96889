"""Scores golden pairs with transformers 4, which knows nothing of this package.

python check.py FOLDER...    of exports; fails where a score is not the contract's
"""

import json
import pathlib
import sys

import torch
import transformers


def largest_difference(folder: pathlib.Path) -> float:
    """Between the golden scores and what the stock model makes of the same tokens."""
    contract = json.loads((folder / "ranker_contract.json").read_text())
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        str(folder), dtype=torch.float32
    ).eval()
    worst = 0.0
    for golden in contract["golden"]:
        tokens = torch.tensor([golden["tokens"]])
        given = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        first, second = contract["types"]
        if first != second:
            place = torch.arange(tokens.shape[1])[None]
            late = place >= golden["document"]
            given["token_type_ids"] = torch.where(late, second, first)
        with torch.no_grad():
            score = float(model(**given).logits[0, 0])
        worst = max(worst, abs(score - golden["score"]))
    return worst / max(contract["scores"]["std"], 1e-6)


def main() -> None:
    """Checks each folder."""
    assert transformers.__version__.startswith("4."), transformers.__version__
    failed = 0
    for folder in map(pathlib.Path, sys.argv[1:]):
        worst = largest_difference(folder)
        right = worst < 0.01
        failed += not right
        print(f"{folder.name}: largest difference {worst:.1e} standard deviations")
    print(f"{len(sys.argv) - 1 - failed} passed, {failed} failed")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
