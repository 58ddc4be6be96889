"""Floating-point operations that a model needs.

A multiplication and an addition are two. Only matrix products count; all else is a few
per cent of a transformer.
"""

from ranker import config


def model_flops(
    model: config.Decoder | config.Encoder,
    *,
    vocab_size: int,
    rows: int,
    length: int,
    scored: int,
    language: bool,
    train: bool,
    text: int = 0,
) -> float:
    """What a step cannot do without: no recomputation, no half that a mask hides.

    As in PaLM (Chowdhery et al., 2022, appendix B), but causal attention counts half.
    Where scores are read off some tokens, the last layer's output projection and MLP
    run for those alone.

    Args:
      model: the network.
      vocab_size: rows of the embeddings.
      rows: rows of the batch.
      length: tokens a row.
      scored: documents that are scored.
      language: whether every token predicts the next.
      train: whether there is a backward pass, of twice the forward's work.
      text: tokens a text, which attention ends with; 0: each row is one text.
    """
    D, N, H, F = model.embed_dim, model.num_heads, model.head_dim, model.mlp_dim
    decoder = isinstance(model, config.Decoder)
    K = model.num_kv_heads if decoder else N
    matrices = 3 if decoder or model.gated else 2
    inputs, outputs = D * H * (N + 2 * K), D * H * N + matrices * D * F  # weights
    tokens = rows * length
    all_read = language or (not decoder and model.pooling == "mean")
    last = tokens if all_read else scored
    far = min(text or length, length)
    far = far / 2 if decoder else far
    near = min(far, model.window * (1 if decoder else 2)) if model.window else far
    local = len(model.local_layers)
    seen = local * near + (model.num_layers - local) * far  # keys a query, all layers
    each = (model.num_layers - 1) * tokens + last
    forward = 2 * (model.num_layers * tokens * inputs + each * outputs)
    forward += 4 * tokens * seen * N * H
    if language:
        forward += 2 * tokens * D * vocab_size
    elif not decoder:
        forward += 2 * scored * D * D
    return forward * (3 if train else 1)
