"""Fresh problems with known answers: real images, a new network, the gradient of its first layer."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

Array = np.ndarray[Any, Any]
Source = Literal["fashion-mnist", "digits", "photos"]

FULL_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package dataset-fashion-mnist puts the 60,000 training images."""
SUBSET = Path(__file__).parent.parent / "examples" / "data" / "fashion_mnist_subset.npz"
"""1,000 of them, shipped; used where the package is not installed."""


@dataclass(frozen=True)
class Images:
    """A batch of images as a network sees them.

    Shapes: b images of n = channels · height · width numbers.
    """

    inputs: Array
    """(b, n) float64, normalised."""
    labels: Array
    """(b,) int64."""
    shape: tuple[int, int, int]
    mean: float
    std: float


@dataclass(frozen=True)
class Problem:
    """What the first layer of a network shares, and the truth behind it.

    Shapes: m output units, n input features, b inputs.
    """

    weight_grad: Array
    bias_grad: Array
    weight: Array
    bias: Array
    images: Images
    activity: float
    """Share of units that are on, averaged over the batch."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What a server sees, under the names that `spear_np.invert` gives it."""
        return {name: getattr(self, name) for name in ("weight_grad", "bias_grad", "weight", "bias")}

    def error(self, recovered: Array) -> float:
        """Return the largest error of the recovered inputs (k, n), relative to the range of the data.

        Every recovered row is held against the true input nearest to it; a true input that no row is nearest to
        makes the answer infinite, so that a short or repeated answer can never look right.
        """
        truth = self.images.inputs
        if recovered.shape[1:] != truth.shape[1:] or len(recovered) == 0:
            return float("inf")
        squares = (truth**2).sum(1)[None, :] - 2 * recovered @ truth.T
        nearest = squares.argmin(1)
        if set(nearest.tolist()) != set(range(len(truth))):
            return float("inf")
        return float(np.abs(recovered - truth[nearest]).max() / np.ptp(truth))


def make_problem(
    m: int,
    b: int,
    seed: int,
    *,
    source: Source = "fashion-mnist",
    depth: int = 6,
    dtype: torch.dtype = torch.float32,
) -> Problem:
    """Return a problem that no other seed shares: new images, a new network at PyTorch's default initialisation.

    Parameters
    ----------
    m : int
        Width of the hidden layers.
    b : int
        Images in the batch.
    seed : int
        Decides the images and the network.
    source : {"fashion-mnist", "digits", "photos"}
        Where the images come from (n = 784, 64 or 150,528).
    depth : int
        Number of fully connected layers, all but the last followed by a ReLU.
    dtype : torch.dtype
        Precision of the forward and backward pass, and so of the gradients.
    """
    images = sample_images(source, b, seed)
    network = mlp(images.inputs.shape[1], m, depth, seed).to(dtype)
    first = network[0]
    activations = torch.as_tensor(images.inputs, dtype=dtype)
    logits = network(activations)
    nn.functional.cross_entropy(logits, torch.as_tensor(images.labels)).backward()
    with torch.no_grad():
        activity = float((first(activations) > 0).double().mean())
    rounded = activations.double().numpy()
    return Problem(
        weight_grad=_numpy(first.weight.grad),
        bias_grad=_numpy(first.bias.grad),
        weight=_numpy(first.weight.detach()),
        bias=_numpy(first.bias.detach()),
        # The truth is what the layer was given: the images as rounded to its precision.
        images=Images(rounded, images.labels, images.shape, images.mean, images.std),
        activity=activity,
    )


def _numpy(tensor: torch.Tensor) -> Array:
    """Return the numbers of a tensor; bfloat16, for which NumPy has no type, as float32."""
    return np.asarray(tensor.float() if tensor.dtype is torch.bfloat16 else tensor)


def mlp(n: int, m: int, depth: int, seed: int, classes: int = 10) -> nn.Sequential:
    """Return a fully connected ReLU network: `depth` layers of width m, the last with one output a class."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for width in [n] + [m] * (depth - 2):
        layers += [nn.Linear(width, m), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(m, classes))


def sample_images(source: Source, b: int, seed: int) -> Images:
    """Draw b images without replacement."""
    rng = np.random.default_rng(seed)
    samplers: dict[Source, Callable[[int, np.random.Generator], Images]] = {
        "fashion-mnist": _fashion_mnist,
        "digits": _digits,
        "photos": _photo_crops,
    }
    return samplers[source](b, rng)


def _normalise(pixels: Array, labels: Array, shape: tuple[int, int, int], mean: float, std: float) -> Images:
    """Flatten pixels in [0, 1] and bring them to the mean and spread that networks are trained with."""
    inputs = (pixels.reshape(len(pixels), -1).astype(np.float64) - mean) / std
    return Images(inputs, labels.astype(np.int64), shape, mean, std)


def _fashion_mnist(b: int, rng: np.random.Generator) -> Images:
    images, labels = load_fashion_mnist()
    chosen = rng.choice(len(images), b, replace=False)
    return _normalise(images[chosen] / 255, labels[chosen], (1, 28, 28), 0.286, 0.353)


def load_fashion_mnist() -> tuple[Array, Array]:
    """Return all training images (count, 28, 28) uint8 that are at hand, and their labels (count,)."""
    if not FULL_FASHION_MNIST.is_dir():
        with np.load(SUBSET) as subset:
            return subset["images"], subset["labels"]
    images = _idx(FULL_FASHION_MNIST / "train-images-idx3-ubyte.gz", header=16)
    labels = _idx(FULL_FASHION_MNIST / "train-labels-idx1-ubyte.gz", header=8)
    return images.reshape(-1, 28, 28), labels


def _idx(path: Path, header: int) -> Array:
    """Read the bytes of a gzipped IDX file behind its header."""
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def _digits(b: int, rng: np.random.Generator) -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = rng.choice(len(digits.images), b, replace=False)
    return _normalise(digits.images[chosen] / 16, digits.target[chosen], (1, 8, 8), 0.305, 0.376)


def _photo_crops(b: int, rng: np.random.Generator, side: int = 224) -> Images:
    """Cut b squares out of the sample photographs that scikit-image and scikit-learn ship.

    There are nine photographs: in a batch of ten or more, crops of one photograph may overlap.
    """
    photos = _photos()
    order = rng.permutation(len(photos))
    crops = []
    for i in range(b):
        photo = photos[order[i % len(photos)]]
        top, left = (int(rng.integers(size - side + 1)) for size in photo.shape[:2])
        crops.append(photo[top : top + side, left : left + side].transpose(2, 0, 1) / 255)
    return _normalise(np.stack(crops), rng.integers(10, size=b), (3, side, side), 0.45, 0.27)


def _photos() -> list[Array]:
    """Colour photographs (height, width, 3) uint8, all at least 224 pixels on a side."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    names = (
        "astronaut",
        "chelsea",
        "coffee",
        "rocket",
        "hubble_deep_field",
        "retina",
        "immunohistochemistry",
    )
    return [getattr(data, name)() for name in names] + list(load_sample_images().images)
