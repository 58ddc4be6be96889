"""What an export adds for servers: a graph, accepted precisions, a calibration."""

import jax
import numpy as np
import pytest
from made_rankers import WORDS

from ranker import config, manifests, sharding
from ranker.data.records import Document, RankedList
from ranker.data.text import Tokenizer, train_wordpiece
from ranker.metrics import calibration
from ranker.serving import contract, runtimes
from ranker.training import export, served, weights
from ranker.training.state import make_network
from ranker.training.trained import Trained

ENCODER = config.Encoder(
    num_layers=1, embed_dim=16, num_heads=2, mlp_dim=32, max_positions=64
)
LENGTH = 32


class Data:
    """Prepared data in memory: 60 queries of four candidates a split."""

    def __init__(self, folder):
        self.folder, draw = folder, np.random.default_rng(0)

        def text(n):
            return " ".join(draw.choice(WORDS, n))

        self.documents = [Document(str(i), text(2), text(6)) for i in range(50)]
        self.records = [
            RankedList(
                query_id=str(i),
                query=text(2),
                documents=draw.permutation(50)[:4],
                labels=np.array([0, 1, 0, 2], np.float32)[draw.permutation(4)],
                first_stage=np.zeros(4, np.float32),
                judged_ids=(),
                judged_grades=np.zeros(0, np.int32),
            )
            for i in range(60)
        ]
        texts = (f"{one.title} {one.text}" for one in self.documents)
        train_wordpiece(texts, 120, folder)

    def corpus(self):
        return self.documents

    def lists(self, split):
        return [] if split == "unlabelled" else self.records

    def tokenizer(self, role):
        return Tokenizer(self.folder, "pair")

    def tokenizer_folder(self, role):
        return self.folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    data = Data(root / "tokenizer")
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    size = data.tokenizer("").vocab_size
    network = make_network(ENCODER, size, "score", mesh)
    params = weights.complete_params({}, network, ENCODER, size, "score", seed=0)
    params = jax.tree.map(lambda x: x * 7, params)
    manifest = manifests.Manifest(kind="sft", settings={}, inputs={})
    trained = Trained(
        "sft", manifest, ENCODER, "student", size, LENGTH, network, params
    )
    folder = root / "export"
    export.write_folder(folder, trained, data, mesh)

    def score(segments):
        return export.score_segments(segments, trained, data.tokenizer(""), mesh)

    return folder, trained, data, score


def test_a_graph_and_a_calibration_are_added(made):
    folder, trained, data, score = made
    served.add_served(folder, config.Export(), trained, data, score)
    promise = contract.load_contract(folder)
    found = calibration.from_json(promise.calibration)
    golden = np.array([one.score for one in promise.golden])
    assert ((found(golden) > 0) & (found(golden) < 1)).all()
    runtime = runtimes.open_runtime(folder, "onnxruntime", "float32")
    rows = [served.precision.golden_row(promise, one) for one in promise.golden]
    np.testing.assert_allclose(runtimes.score_pairs(runtime, rows), golden, atol=1e-4)


def test_a_precision_is_tried_on_dev(made, capsys):
    folder, trained, data, score = made
    onnx = config.Onnx(precision="bfloat16", margin=0.05)
    settings = config.Export(onnx=onnx, calibration="none")
    served.add_served(folder, settings, trained, data, score)
    record = contract.load_contract(folder).precisions["bfloat16"]
    assert record["queries"] == 60 and record["runtime"] == "openvino"
    assert abs(record["loss"]) < 0.05
    assert "bfloat16 by openvino: " in capsys.readouterr().out
    assert (folder / runtimes.FILES["bfloat16"]).is_file() == record["accepted"]


def test_no_graph_where_none_is_wanted_or_can_be(made, capsys, monkeypatch):
    folder, trained, data, score = made
    none = config.Export(onnx=config.Onnx(precision="none"), calibration="none")
    served.add_served(folder, none, trained, data, score)
    assert not (folder / runtimes.FILES["float32"]).exists()
    monkeypatch.setattr(served.importlib.util, "find_spec", lambda name: None)
    plain = config.Export(calibration="none")
    served.add_served(folder, plain, trained, data, score)
    assert "onnx is not installed" in capsys.readouterr().out
    asked = config.Export(onnx=config.Onnx(precision="int8"), calibration="none")
    with pytest.raises(served.ModelError, match="onnx is not installed"):
        served.add_served(folder, asked, trained, data, score)
