"""What the feed-forward block of a transformer gives away: its two layers are a chain, its tokens the batch.

pip install 'spear-np[torch]'
python examples/transformer_feed_forward.py
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import spear_np
from spear_io import open_dump
from spear_io.adapters.to_torch import record_gradients

DIMENSIONS, TOKENS, WORDS = 64, 30, 500


def main() -> None:
    torch.manual_seed(4)
    embedding = nn.Embedding(WORDS, DIMENSIONS)
    block = nn.TransformerEncoderLayer(
        DIMENSIONS, nhead=4, dim_feedforward=4 * DIMENSIONS, dropout=0.0, activation="gelu", norm_first=True
    )
    head = nn.Linear(DIMENSIONS, WORDS)
    model = nn.Sequential(embedding, block, head)

    # One client's step: predict the next word of a single private sequence.
    sentence = torch.randperm(WORDS)[
        : TOKENS + 1
    ]  # the same word twice would be the same token here, and count once
    with record_gradients(model, layers=["1.linear1", "1.linear2"]) as recorder:
        nn.functional.cross_entropy(model(sentence[:-1]), sentence[1:]).backward()
    recorder.write("transformer.h5", record="client-0")

    with open_dump("transformer.h5") as dump:
        record = dump.records[0]
        first, second = record.layers
        print(f"'{second.name}' follows '{second.follows}', with {first.activation} in between")
        result = spear_np.invert_chain([layer.gradients for layer in record.chain_from(first)])
        assert first.truth is not None
        states = first.truth[...].astype(np.float64)
        recovered = np.asarray(result.inputs)
    print(result)
    distances = np.abs(recovered[:, None, :] - states[None, :, :]).max(axis=2)
    print(
        f"{len(set(distances.argmin(axis=1)))} of {TOKENS} hidden states (what the block sees of each token,"
    )
    print(
        f"behind its LayerNorm), the worst off by {distances.min(axis=1).max() / np.ptp(states):.1e} of their range"
    )


if __name__ == "__main__":
    main()
