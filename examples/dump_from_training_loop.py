"""Dump one client update from a training loop of your own: two lines more than the loop without it.

pip install 'spear-np[torch]'
python examples/dump_from_training_loop.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from spear_io.adapters.to_torch import record_gradients

MEAN, STD = 0.286, 0.353


class Classifier(nn.Module):  # type: ignore[misc]
    """Any model will do; this one calls its ReLUs as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(784, 300)
        self.second = nn.Linear(300, 100)
        self.head = nn.Linear(100, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.first(images.flatten(1)))
        hidden = self.second(hidden).relu()
        return self.head(hidden)


def main() -> None:
    with np.load(Path(__file__).parent / "data" / "fashion_mnist_subset.npz") as subset:
        images = torch.tensor((subset["images"] / 255 - MEAN) / STD, dtype=torch.float32)
        labels = torch.tensor(subset["labels"].astype(np.int64))

    torch.manual_seed(3)
    model = Classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    # A few steps as anybody takes them: what follows is not the gradient of a fresh network.
    for step in range(8):
        batch = slice(64 * step, 64 * (step + 1))
        optimizer.zero_grad()
        functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()

    # The update to audit: a client's step on eight images of its own.
    client = slice(900, 908)
    optimizer.zero_grad()
    with record_gradients(model) as recorder:
        loss = functional.cross_entropy(model(images[client]), labels[client])
        loss.backward()
    recorder.write(
        "client_update.h5",
        record="client-0",
        labels=labels[client],
        input_shape=(1, 28, 28),
        input_mean=MEAN,
        input_std=STD,
    )
    optimizer.step()

    for name, layer in recorder.layers.items():
        units = model.get_submodule(name).out_features
        print(f"{name}: {units} units, followed by {layer.activation}")
    print("Now see what this update gives away:")
    print("    spear-np invert client_update.h5 -o inverted.h5")
    print("    spear-np evaluate inverted.h5 client_update.h5")


if __name__ == "__main__":
    main()
