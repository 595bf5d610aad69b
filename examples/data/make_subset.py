"""Cut `fashion_mnist_subset.npz` out of the 60,000 training images of Fashion-MNIST.

python examples/data/make_subset.py [FOLDER with train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz]
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np

SEED = 2017
COUNT = 1000
DEBIAN_PACKAGE = "/usr/share/datasets/fashion-mnist"  # dataset-fashion-mnist


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else DEBIAN_PACKAGE)
    images = np.frombuffer(
        gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16
    )
    labels = np.frombuffer(
        gzip.decompress((folder / "train-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8
    )
    chosen = np.sort(np.random.default_rng(SEED).choice(len(labels), COUNT, replace=False))
    np.savez_compressed(
        Path(__file__).with_name("fashion_mnist_subset.npz"),
        images=images.reshape(-1, 28, 28)[chosen],
        labels=labels[chosen],
        training_index=chosen.astype(np.int32),
    )


if __name__ == "__main__":
    main()
