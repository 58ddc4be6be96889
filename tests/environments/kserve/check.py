"""The open inference client of docs/serving.md against a running server.

It must give the golden pairs of the export's contract their scores.

python check.py EXPORT PORT
"""

import json
import pathlib
import re
import sys
import time
import urllib.error
import urllib.request

_PATIENCE = 120.0  # seconds until the server is ready


def wait_ready(port: int) -> None:
    """Asks as the protocol says whether the model can be used."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            address = f"http://127.0.0.1:{port}/v2/models/ranker/ready"
            with urllib.request.urlopen(address):
                return
        except OSError:
            assert time.monotonic() < end, "the server is not ready"
            time.sleep(0.5)


def main() -> None:
    """Scores each golden query's texts."""
    folder, port = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    page = (pathlib.Path(__file__).parents[3] / "docs/serving.md").read_text()
    [code] = re.findall(r'```python title="open_inference.py"\n(.*?)```', page, re.S)
    promise = json.loads((folder / "ranker_contract.json").read_text())
    code = code.replace("localhost:8000", f"127.0.0.1:{port}")
    code = code.replace("export/tokenizer.json", str(folder / "tokenizer.json"))
    code = code.replace("256", str(promise["length"]))
    known: dict = {}
    exec(compile(code, "docs/serving.md", "exec"), known)
    wait_ready(port)
    spread, far, pairs = promise["scores"]["std"], 0.0, 0
    for one in promise["golden"]:
        if len(known["tokenizer"].encode(one["query"]).ids) > promise["length"] // 2:
            continue  # a tokenizer cuts the document alone
        text = f"{one['title']} {one['text']}".strip()
        # A second text, longer or shorter, so that rows are padded.
        found = known["scores"](one["query"], [text, "a few words"])
        far, pairs = max(far, abs(found[0] - one["score"])), pairs + 1
    print(f"{pairs} golden pairs, scores differ by {far / spread:.1e} of their std")
    assert pairs >= 8 and far < 1e-3 * spread


if __name__ == "__main__":
    main()
