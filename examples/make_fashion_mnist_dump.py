"""Make `fashion_mnist_b16.h5`: what a client shares after one step on 16 real images. Trains nothing.

pip install 'spear-np[torch]'
python examples/make_fashion_mnist_dump.py
spear-np invert examples/fashion_mnist_b16.h5 -o inverted.h5
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

from spear_io.adapters.to_torch import record_gradients

HERE = Path(__file__).parent
MEAN, STD = 0.286, 0.353


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=HERE / "fashion_mnist_b16.h5")
    parser.add_argument("-b", "--batch-size", type=int, default=16)
    parser.add_argument("--width", type=int, default=200, help="units of every hidden layer")
    parser.add_argument("--seed", type=int, default=2024, help="decides the images and the network")
    options = parser.parse_args()

    images, labels = batch(options.batch_size, options.seed)
    model = network(options.width, options.seed)

    # The first layer is enough to see the images themselves; later ones would show its activations.
    with record_gradients(model, layers=["0"]) as recorder:
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
    recorder.write(
        options.output,
        record="client-0",
        labels=labels,
        input_shape=(1, 28, 28),
        input_mean=MEAN,
        input_std=STD,
        loss_reduction="mean",
        compression="gzip",
    )
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.2f} MB")


def batch(b: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw images (b, 784), normalised, and labels (b,) from the shipped part of Fashion-MNIST."""
    with np.load(HERE / "data" / "fashion_mnist_subset.npz") as subset:
        chosen = np.random.default_rng(seed).choice(len(subset["images"]), b, replace=False)
        pixels = subset["images"][chosen].reshape(b, -1) / 255
        labels = subset["labels"][chosen].astype(np.int64)
    return torch.tensor((pixels - MEAN) / STD, dtype=torch.float32), torch.tensor(labels)


def network(width: int, seed: int) -> nn.Sequential:
    """Return six fully connected layers, all but the last with a ReLU, as PyTorch initialises them."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for features in (784, width, width, width, width):
        layers += [nn.Linear(features, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


if __name__ == "__main__":
    main()
