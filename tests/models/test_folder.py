"""What a folder says of itself, without its weights."""

import json

from ranker.models.folder import NO_HEAD, read_head


def test_a_text_encoder_has_no_head(tmp_path):
    """Git keeps no empty folder, so the last module's is often not there."""
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Norm")]
    described = [
        {"type": f"sentence_transformers.models.{name}", "path": path}
        for name, path in modules
    ]
    (tmp_path / "modules.json").write_text(json.dumps(described))
    assert read_head(tmp_path) == NO_HEAD
