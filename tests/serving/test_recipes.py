"""The recipes of docs/serving.md: what each server does with them, as documented."""

import json
import pathlib
import re
import shutil
import subprocess
import threading
import time
import xml.etree.ElementTree as ElementTree
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
from made_rankers import export
from starlette.testclient import TestClient
from tokenizers import Tokenizer

from ranker.models.huggingface import flat
from ranker.serving import contract, onnx_graph, server, starting
from ranker.serving.batching import Limits

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs/serving.md").read_text()
LENGTH = 64
QUERY = 'cheap "flights"'
TEXTS = ["low fares to rome", "cats and dogs", "", "the Snow every day " * 20]
KEY = "secret"


def block(title):
    """The code of this page that has a title."""
    [found] = re.findall(rf'```\w+ title="{re.escape(title)}"\n(.*?)```', PAGE, re.S)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes") / "export"
    model = export(folder, length=LENGTH)
    params = dict(flat(model.scorer.params))
    onnx_graph.write_graph(folder / onnx_graph.FILE, model.scorer.model, params)
    return folder


@pytest.fixture(scope="module")
def client(folder):
    state, problems = server.State(Limits(), (KEY.encode(),)), []

    def start():
        return starting.start(folder, runtime="onnxruntime", limits=state.limits)

    with TestClient(server.make_app(state, start, problems.append)) as client:
        while client.get("/ready").status_code != 200:
            assert not problems
            time.sleep(0.01)
        yield client


@pytest.fixture(scope="module")
def expected(client):
    """Raw scores of the server, in the order of the texts."""
    body = {"query": QUERY, "texts": TEXTS, "raw_scores": True}
    headers = {"x-api-key": KEY}
    found = client.post("/rerank", json=body, headers=headers).json()
    return np.array([one["score"] for one in sorted(found, key=lambda x: x["index"])])


def session(folder):
    return onnxruntime.InferenceSession(str(folder / onnx_graph.FILE))


def posted(client, url, body, headers):
    """The answer of the server that the recipe calls http://ranker:8080."""
    address = "http://ranker:8080"
    assert url.startswith(address)
    answer = client.post(url.removeprefix(address), content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


# --- Text Embeddings Inference --------------------------------------------------------


def test_the_files_that_text_embeddings_inference_asks_for(folder):
    described = json.loads((folder / "config.json").read_text())
    assert described["architectures"] == ["BertForSequenceClassification"]
    assert list(described["id2label"]) == ["0"]  # one label: a reranker
    assert described["max_position_embeddings"] >= LENGTH
    assert (folder / "tokenizer.json").is_file()
    with safetensors.safe_open(folder / "model.safetensors", "np") as weights:
        names = set(weights.keys())
        assert weights.get_tensor("classifier.weight").shape[0] == 1
    # Its BERT reads these by name.
    layer = "bert.encoder.layer.0"
    assert {
        "bert.embeddings.word_embeddings.weight",
        f"{layer}.attention.self.query.weight",
        f"{layer}.intermediate.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.bias",
    } <= names


# --- Vespa ----------------------------------------------------------------------------


def vespa_functions(schema, start, separator):
    """Functions of the schema as numpy, by the reference of rank features."""

    def padded(length, parts):
        found = np.concatenate(parts)[:length]
        return np.pad(found, (0, length - len(found)))[None].astype(np.int64)

    def real(tensor):
        return np.trim_zeros(tensor, "b")  # they take tensors that zeros fill up

    def input_ids(first, last, length, query, document):
        parts = [[first], real(query), [last], real(document), [last]]
        return padded(length, parts)

    def attention_mask(length, query, document):
        return padded(length, [np.ones(len(real(query)) + len(real(document)) + 3)])

    def type_ids(length, query, document):
        zeros, ones = np.zeros(len(real(query)) + 2), np.ones(len(real(document)) + 1)
        return padded(length, [zeros, ones])

    known = {
        "customTokenInputIds": input_ids,
        "tokenAttentionMask": attention_mask,
        "tokenTypeIds": type_ids,
    }
    pattern = r"function (\w+)\(\) \{ expression: (\w+)\((.*?)\) \}"
    found = {}
    for name, call, given in re.findall(pattern, schema):
        numbers = [int(one) for one in re.findall(r"\d+(?=,)", given)]
        numbers = [{101: start, 102: separator, 256: LENGTH}[one] for one in numbers]
        assert given.endswith("query(q_tokens), attribute(tokens)")
        found[name] = lambda q, d, call=call, numbers=numbers: known[call](
            *numbers, q, d
        )
    return found


def test_vespa(folder, expected):
    services = ElementTree.fromstring(block("services.xml"))
    component = services.find(".//component[@type='hugging-face-tokenizer']")
    assert component is not None and component.get("id") == "tokenizer"
    model = component.find("model")
    assert model is not None and model.get("path") == "models/tokenizer.json"
    assert component.findtext("special-tokens") == "false"
    schema = block("schemas/page.sd")
    assert schema.count("{") == schema.count("}")
    [kind] = re.findall(r"schema (\w+)", schema)
    assert [one.get("type") for one in services.iter("document")] == [kind]
    assert "| embed tokenizer | attribute" in schema
    # Sizes add up to the length: start and two separators stand around the texts.
    sizes = [int(one) for one in re.findall(r"tensor<float>\(d0\[(\d+)\]\)", schema)]
    assert sum(sizes) + 3 == 256 and "file: models/model.onnx" in schema
    # Names are the graph's.
    graph = onnx.load(str(folder / onnx_graph.FILE)).graph
    inputs = dict(re.findall(r"input (\w+): (\w+)", schema))
    assert list(inputs) == [one.name for one in graph.input]
    [(output, name)] = re.findall(r"output (\w+): (\w+)", schema)
    assert [one.name for one in graph.output] == [output]
    assert f"onnx(ranker).{name}{{d0:0,d1:0}}" in schema
    # The inputs that they make score as the server does.
    promise = contract.load_contract(folder)
    assert len(promise.prefix) == 1 and promise.middle == promise.suffix
    functions = vespa_functions(schema, promise.prefix[0], promise.middle[0])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def embed(text, size):
        ids = tokenizer.encode(text, add_special_tokens=False).ids[:size]
        return np.pad(ids, (0, size - len(ids)))

    query = embed(QUERY, sizes[1])
    room = LENGTH - 3 - len(np.trim_zeros(query, "b"))
    opened = session(folder)
    found = []
    for text in TEXTS:
        document = embed(f" {text}", room)  # a title that is empty, a space, the body
        fields = {key: functions[one](query, document) for key, one in inputs.items()}
        found.append(opened.run([output], fields)[0][0, 0])
    np.testing.assert_allclose(found, expected, atol=1e-4)


# --- the Open Inference Protocol ------------------------------------------------------


def open_inference_stub(opened):
    """A server of POST /v2/models/ranker/infer around a session."""
    kinds = {"tensor(int64)": "INT64"}
    wanted = {one.name: kinds[one.type] for one in opened.get_inputs()}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802, the name that http.server asks for
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            assert self.path == "/v2/models/ranker/infer"
            assert {one["name"]: one["datatype"] for one in body["inputs"]} == wanted
            fields = {
                one["name"]: np.array(one["data"], np.int64).reshape(one["shape"])
                for one in body["inputs"]
            }
            [found] = opened.run(["logits"], fields)
            output = {"name": "logits", "shape": list(found.shape), "datatype": "FP32"}
            output["data"] = found.ravel().tolist()
            answer = json.dumps({"model_name": "ranker", "outputs": [output]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format, *args):
            pass

    return HTTPServer(("127.0.0.1", 0), Handler)


def test_the_client_of_the_open_inference_protocol(folder, expected):
    running = open_inference_stub(session(folder))
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    code = block("open_inference.py")
    assert "localhost:8000" in code and "export/tokenizer.json" in code
    code = code.replace("localhost:8000", f"127.0.0.1:{running.server_port}")
    code = code.replace("export/tokenizer.json", str(folder / "tokenizer.json"))
    code = code.replace("256", str(LENGTH))
    try:
        known = {}
        exec(compile(code, "docs/serving.md", "exec"), known)
        found = known["scores"](QUERY, TEXTS)
    finally:
        running.shutdown()
        thread.join()
        running.server_close()
    np.testing.assert_allclose(found, expected, atol=1e-4)


# --- search engines -------------------------------------------------------------------


def filled(template, values):
    """A template with each ${name} in it replaced."""
    return re.sub(r"\$\{([\w.]+)\}", lambda found: values[found[1]], template)


def test_opensearch(client, expected):
    connector = json.loads(block("POST /_plugins/_ml/connectors/_create"))
    assert connector["protocol"] == "http" and int(connector["version"])
    [action] = connector["actions"]
    assert action["pre_process_function"] == "connector.pre_process.cohere.rerank"
    assert action["action_type"] == "predict" and action["method"] == "POST"
    values = {
        "credential.key": KEY,
        # What the pre-processing gives: a list as JSON, a text escaped, their number.
        "parameters.documents": json.dumps(TEXTS),
        "parameters.query": json.dumps(QUERY)[1:-1],
        "parameters.top_n": str(len(TEXTS)),
        "parameters.model": connector["parameters"]["model"],
    }
    headers = {name: filled(one, values) for name, one in action["headers"].items()}
    body = filled(action["request_body"], values)
    answer = posted(client, action["url"], body, headers)
    # What the post-processing reads: a score for each document, by its index.
    found = {one["index"]: one["relevance_score"] for one in answer["results"]}
    assert sorted(found) == list(range(len(TEXTS)))
    assert sorted(found, key=found.__getitem__) == np.argsort(expected).tolist()


def test_elasticsearch_custom(client, expected):
    settings = json.loads(block("PUT /_inference/rerank/ranker"))["service_settings"]
    values = {
        "api_key": KEY,
        "input": json.dumps(TEXTS),
        "query": json.dumps(QUERY),
    }
    assert list(settings["secret_parameters"]) == ["api_key"]
    headers = {name: filled(one, values) for name, one in settings["headers"].items()}
    body = filled(settings["request"], values)
    answer = posted(client, settings["url"], body, headers)

    def read(path):
        [(whole, name)] = re.findall(r"^\$\.(\w+)\[\*\]\.(\w+)$", path)
        return [one[name] for one in answer[whole]]

    parser = settings["response"]["json_parser"]
    order = read(parser["reranked_index"])
    assert order == np.argsort(-expected).tolist()
    probabilities = 1 / (1 + np.exp(-expected[order]))
    assert read(parser["relevance_score"]) == pytest.approx(probabilities, abs=1e-6)


@pytest.mark.parametrize("name", ["texts", "documents"])
def test_elasticsearch_hugging_face(client, expected, name):
    """It parses a bare list; its request has had two forms."""
    [url] = re.findall(r'"hugging_face".*?"url":\s*"(.*?)"', PAGE, re.S)
    body = json.dumps({name: TEXTS, "query": QUERY, "return_text": None, "top_n": None})
    headers = {"authorization": f"Bearer {KEY}"}
    answer = posted(client, url, body, headers)
    assert [one["index"] for one in answer] == np.argsort(-expected).tolist()
    assert all(isinstance(one["score"], float) for one in answer)


# --- systemd and Docker ---------------------------------------------------------------


def test_the_systemd_unit_is_valid(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not here")
    unit = (ROOT / "deploy/ranker.service").read_text()
    program = "/opt/ranker/venv/bin/python"
    assert unit.count(program) == 1
    path = tmp_path / "ranker.service"
    path.write_text(unit.replace(program, shutil.which("true") or "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0 and "ranker" not in done.stderr, done.stderr


def test_what_the_unit_and_the_image_start_is_a_command_of_ours(capsys):
    from ranker import serve

    unit = (ROOT / "deploy/ranker.service").read_text().replace("\\\n", " ")
    [started] = re.findall(r"^ExecStart=(.*)$", unit, re.M)
    image = (ROOT / "deploy/Dockerfile").read_text()
    [entry], [rest] = (
        re.findall(rf"^{name} (.*)$", image, re.M) for name in ("ENTRYPOINT", "CMD")
    )
    for words in (started.split(), [*json.loads(entry), *json.loads(rest)]):
        at = words.index("ranker.serve")
        assert words[at - 1] == "-m"
        given = serve.make_parser().parse_args(words[at + 1 :])
        assert given.drain == 5
    # What is copied into the image is there.
    for line in re.findall(r"^COPY (.*) \S+$", image, re.M):
        for name in line.split():
            assert (ROOT / name).exists(), name
    [extras] = re.findall(r"'\.\[(.*?)\]'", image)
    described = (ROOT / "pyproject.toml").read_text()
    for extra in extras.split(","):
        assert re.search(rf"^{extra} = \[", described, re.M), extra
