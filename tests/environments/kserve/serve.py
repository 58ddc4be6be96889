"""An export's graph behind KServe's own server: the open inference protocol.

python serve.py EXPORT PORT
"""

import pathlib
import sys
import uuid

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Ranker(Model):
    """The graph in onnxruntime, fed with the tensors as they came."""

    def __init__(self, path: pathlib.Path):
        super().__init__("ranker")
        self.session = onnxruntime.InferenceSession(str(path))
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        """Scores of a request's rows."""
        assert isinstance(payload, InferRequest)
        fields = {one.name: one.as_numpy() for one in payload.inputs}
        [found] = self.session.run(["logits"], fields)
        output = InferOutput(
            "logits", list(found.shape), "FP32", found.ravel().tolist()
        )
        return InferResponse(payload.id or str(uuid.uuid4()), self.name, [output])


if __name__ == "__main__":
    folder, port = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    server = ModelServer(http_port=port, enable_grpc=False, workers=1)
    server.start([Ranker(folder / "onnx/model.onnx")])
