"""Make `fashion_mnist_gelu_b24.h5`: all layers of a GELU network after one step on 24 real images. Trains nothing.

pip install 'spear-np[torch]'
python examples/make_gelu_dump.py
spear-np invert examples/fashion_mnist_gelu_b24.h5 -o inverted.h5
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
SIDE = 14


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=HERE / "fashion_mnist_gelu_b24.h5")
    parser.add_argument("-b", "--batch-size", type=int, default=24)
    parser.add_argument("--width", type=int, default=80, help="units of both hidden layers")
    parser.add_argument("--seed", type=int, default=2025, help="decides the images and the network")
    options = parser.parse_args()

    images, labels = batch(options.batch_size, options.seed)
    torch.manual_seed(options.seed)
    model = nn.Sequential(
        nn.Linear(SIDE**2, options.width),
        nn.GELU(),
        nn.Linear(options.width, options.width),
        nn.GELU(),
        nn.Linear(options.width, 10),
    )

    # A GELU leaves no zeros, so that a single layer tells nothing: all of them are recorded.
    with record_gradients(model) as recorder:
        nn.functional.cross_entropy(model(images), labels).backward()
    recorder.write(
        options.output,
        record="client-0",
        labels=labels,
        input_shape=(1, SIDE, SIDE),
        input_mean=MEAN,
        input_std=STD,
        compression="gzip",
    )
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.2f} MB")


def batch(b: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw images of half the size (b, 196), normalised, and labels (b,) from the shipped part of Fashion-MNIST."""
    with np.load(HERE / "data" / "fashion_mnist_subset.npz") as subset:
        chosen = np.random.default_rng(seed).choice(len(subset["images"]), b, replace=False)
        pixels = subset["images"][chosen].reshape(b, SIDE, 2, SIDE, 2).mean(axis=(2, 4)).reshape(b, -1) / 255
        labels = subset["labels"][chosen].astype(np.int64)
    return torch.tensor((pixels - MEAN) / STD, dtype=torch.float32), torch.tensor(labels)


if __name__ == "__main__":
    main()
