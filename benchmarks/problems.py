"""Fresh problems with known answers: inputs, a new network, the gradient of one of its layers."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

Array = np.ndarray[Any, Any]
Source = Literal["fashion-mnist", "digits", "photos", "faces", "adult", "gaussian"]
Loss = Literal["cross-entropy", "squared-error"]

FULL_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package dataset-fashion-mnist puts the 60,000 training images."""
SUBSET = Path(__file__).parent.parent / "examples" / "data" / "fashion_mnist_subset.npz"
"""1,000 of them, shipped; used where the package is not installed."""
CALIBRATION = 2000
"""Other inputs over which the quantiles of pre-activations are taken."""
TRAINING_BATCH = 64
LEARNING_RATE = 0.1
ADULT_NUMBERS = ((38.6, 13.7), (189_700, 105_500), (10.1, 2.6), (1080, 7450), (87, 403), (40.4, 12.4))
"""Mean and standard deviation of the numeric columns of the ADULT census data: age, weight in the sample, years of
education, capital gain, capital loss, hours of work a week."""
ADULT_CATEGORIES = (9, 16, 7, 15, 6, 5, 2, 42)
"""Values of its categorical columns: employer, education, marital status, occupation, relationship, race, sex,
country."""
EDUCATION = 1
"""The one of them that the years of education tell."""


@dataclass(frozen=True)
class Images:
    """A batch of images, or rows of a table, as a network sees them.

    Shapes: b images of n = channels · height · width numbers.
    """

    inputs: Array
    """(b, n) float64, normalised."""
    labels: Array
    """(b,) int64."""
    shape: tuple[int, int, int]
    mean: float
    std: float
    classes: int = 10

    def normalised(self) -> Images:
        """Return them with the mean and spread that networks are trained with, if these are pixels in [0, 1]."""
        return replace(self, inputs=(self.inputs - self.mean) / self.std)

    def part(self, rows: slice) -> Images:
        """Return some of them."""
        return replace(self, inputs=self.inputs[rows], labels=self.labels[rows])


@dataclass(frozen=True)
class Problem:
    """What a layer of a network shares, and the truth behind it.

    Shapes: m output units, n input features, b inputs.
    """

    weight_grad: Array
    bias_grad: Array
    weight: Array
    bias: Array
    images: Images
    """What the layer was given: the images, or what earlier layers made of them."""
    activity: float
    """Share of units that are on, averaged over the batch."""
    traces: Array | None = None
    """(b,) norm of what each input adds to `weight_grad`, over the rounding of the largest one; None if unknown."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What a server sees, under the names that `spear_np.invert` gives it."""
        return {name: getattr(self, name) for name in ("weight_grad", "bias_grad", "weight", "bias")}

    @property
    def visible(self) -> Array:
        """(b,) bool: whether more of an input than rounding is in `weight_grad`; all, if that is unknown."""
        if self.traces is None:
            return np.ones(len(self.images.inputs), bool)
        return np.asarray(self.traces > 1)

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

    def partners(self, recovered: Array, tolerance: float) -> Array:
        """Return for each true input (b,) the row of `recovered` (k, n) that is nearest to it, or -1.

        It is -1 where some entry of that row is off by `tolerance` times the data range or more.
        """
        truth = self.images.inputs
        if recovered.shape[1:] != truth.shape[1:] or len(recovered) == 0:
            return np.full(len(truth), -1)
        squares = (recovered**2).sum(1)[None, :] - 2 * truth @ recovered.T
        nearest = squares.argmin(1)
        # One row at a time: photographs are wide.
        errors = np.array([np.abs(recovered[k] - row).max() for k, row in zip(nearest, truth, strict=True)])
        return np.where(errors < tolerance * np.ptp(truth), nearest, -1)


def make_problem(
    m: int,
    b: int,
    seed: int,
    *,
    source: Source = "fashion-mnist",
    normalised: bool = True,
    depth: int = 6,
    layer: int = 0,
    share_on: float | None = None,
    weight_std: float | None = None,
    steps: int = 0,
    loss: Loss = "cross-entropy",
    dtype: torch.dtype = torch.float32,
) -> Problem:
    """Return a problem that no other seed shares: new inputs, a new network at PyTorch's default initialisation.

    Parameters
    ----------
    m : int
        Width of the hidden layers.
    b : int
        Inputs in the batch.
    seed : int
        Decides the inputs and the network.
    source : {"fashion-mnist", "digits", "photos", "faces", "adult", "gaussian"}
        Where the inputs come from (n = 784, 64, 150,528, 625, 108 or 784).
    normalised : bool
        False leaves pixels between 0 and 1.
    depth : int
        Number of fully connected layers, all but the last followed by a ReLU.
    layer : int
        Which of them shares its gradient, counting from 0; not the last.
    share_on : float, optional
        Sets the biases of this layer so that each of its units is on for this share of other inputs.
    weight_std : float, optional
        Draws the weights of all layers from a normal distribution of this standard deviation, without biases.
    steps : int
        Steps of SGD on other inputs before the gradient is taken.
    loss : {"cross-entropy", "squared-error"}
        The latter against one-hot labels.
    dtype : torch.dtype
        Precision of the forward and backward pass, and so of the gradients.
    """
    if not 0 <= layer < depth - 1:
        msg = f"layer {layer} of {depth} is not one that a ReLU follows: expected 0 to {depth - 2}"
        raise ValueError(msg)
    wanted = max(steps * TRAINING_BATCH, 0 if share_on is None else CALIBRATION)
    images, others = sample_images(source, b, seed, others=wanted, normalised=normalised)
    network = mlp(images.inputs.shape[1], m, depth, seed, images.classes)
    if weight_std is not None:
        draw_weights(network, weight_std)
    if share_on is not None:
        set_biases(network, layer, share_on, others.part(slice(CALIBRATION)))
    train(network, others, steps, loss)
    position = 2 * layer  # each layer but the last is followed by its ReLU
    return shared_gradient(network.to(dtype), position, images, loss, dtype)


def shared_gradient(
    network: nn.Sequential, position: int, images: Images, loss: Loss, dtype: torch.dtype
) -> Problem:
    """Return what the fully connected layer at a `position` of `network` shares of a step on `images`."""
    attacked = network[position]
    with torch.no_grad():
        inputs = network[:position](torch.as_tensor(images.inputs, dtype=dtype))
    outputs = attacked(inputs)
    outputs.retain_grad()
    loss_of(network[position + 1 :](outputs), images.labels, loss).backward()
    # The truth is what the layer was given: its inputs as rounded to its precision.
    rounded = inputs.double().numpy()
    truth = replace(images, inputs=rounded)
    if position > 0:
        truth = replace(truth, shape=(1, 1, rounded.shape[1]), mean=0.0, std=1.0)
    norms = outputs.grad.double().norm(dim=1).numpy() * np.linalg.norm(rounded, axis=1)
    rounding = torch.finfo(dtype).eps * norms.max()
    return Problem(
        weight_grad=_numpy(attacked.weight.grad),
        bias_grad=_numpy(attacked.bias.grad),
        weight=_numpy(attacked.weight.detach()),
        bias=_numpy(attacked.bias.detach()),
        images=truth,
        activity=float((outputs > 0).double().mean()),
        traces=norms / rounding if rounding > 0 else np.zeros_like(norms),
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


def draw_weights(network: nn.Sequential, std: float) -> None:
    """Draw all weights anew, from a normal distribution, and set all biases to zero."""
    for linear in network[::2]:
        nn.init.normal_(linear.weight, std=std)
        nn.init.zeros_(linear.bias)


def set_biases(network: nn.Sequential, layer: int, share_on: float, others: Images) -> None:
    """Set the biases of a layer so that each of its units is on for this share of `others`."""
    position = 2 * layer
    linear = network[position]
    with torch.no_grad():
        outputs = network[:position](torch.as_tensor(others.inputs, dtype=torch.float32)) @ linear.weight.T
        linear.bias.copy_(-outputs.quantile(1 - share_on, dim=0))


def train(network: nn.Sequential, others: Images, steps: int, loss: Loss) -> None:
    """Take steps of SGD, through `others` from first to last and again from the first if they do not suffice."""
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE)
    for step in range(steps):
        rows = np.arange(step * TRAINING_BATCH, (step + 1) * TRAINING_BATCH) % len(others.inputs)
        optimizer.zero_grad()
        logits = network(torch.as_tensor(others.inputs[rows], dtype=torch.float32))
        loss_of(logits, others.labels[rows], loss).backward()
        optimizer.step()
    network.zero_grad()


def loss_of(logits: torch.Tensor, labels: Array, loss: Loss) -> torch.Tensor:
    """Return the mean loss of logits (b, classes) for labels (b,)."""
    truth = torch.as_tensor(labels)
    if loss == "cross-entropy":
        return nn.functional.cross_entropy(logits, truth)
    one_hot = nn.functional.one_hot(truth, logits.shape[1])
    return nn.functional.mse_loss(logits, one_hot.to(logits.dtype))


def sample_images(
    source: Source, b: int, seed: int, *, others: int = 0, normalised: bool = True
) -> tuple[Images, Images]:
    """Draw b images without replacement, and `others` besides, or as many as there are."""
    rng = np.random.default_rng(seed)
    samplers: dict[Source, Callable[[int, int, np.random.Generator], Images]] = {
        "fashion-mnist": _fashion_mnist,
        "digits": _digits,
        "photos": _photo_crops,
        "faces": _faces,
        "adult": _adult,
        "gaussian": _gaussian,
    }
    images = samplers[source](b, others, rng)
    images = images.normalised() if normalised else replace(images, mean=0.0, std=1.0)
    return images.part(slice(b)), images.part(slice(b, None))


def _images(pixels: Array, labels: Array, shape: tuple[int, int, int], mean: float, std: float) -> Images:
    """Flatten pixels in [0, 1], which are yet to be brought to the mean and spread of networks' inputs."""
    return Images(
        pixels.reshape(len(pixels), -1).astype(np.float64), labels.astype(np.int64), shape, mean, std
    )


def _draw(count: int, b: int, others: int, rng: np.random.Generator) -> Array:
    """Return b of `count` indices and, behind them, `others` of the rest, or all of it."""
    chosen = rng.choice(count, b, replace=False)
    rest = np.setdiff1d(np.arange(count), chosen)
    return np.concatenate([chosen, rng.permutation(rest)[:others]])


def _fashion_mnist(b: int, others: int, rng: np.random.Generator) -> Images:
    images, labels = load_fashion_mnist()
    chosen = _draw(len(images), b, others, rng)
    return _images(images[chosen] / 255, labels[chosen], (1, 28, 28), 0.286, 0.353)


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


def _digits(b: int, others: int, rng: np.random.Generator) -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = _draw(len(digits.images), b, others, rng)
    return _images(digits.images[chosen] / 16, digits.target[chosen], (1, 8, 8), 0.305, 0.376)


def _photo_crops(b: int, others: int, rng: np.random.Generator, side: int = 224) -> Images:
    """Cut squares out of the sample photographs that scikit-image and scikit-learn ship.

    There are nine photographs: in a batch of ten or more, crops of one photograph may overlap.
    """
    photos = _photos()
    order = rng.permutation(len(photos))
    crops = []
    for i in range(b + others):
        photo = photos[order[i % len(photos)]]
        top, left = (int(rng.integers(size - side + 1)) for size in photo.shape[:2])
        crops.append(photo[top : top + side, left : left + side].transpose(2, 0, 1) / 255)
    return _images(np.stack(crops), rng.integers(10, size=b + others), (3, side, side), 0.45, 0.27)


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


def _faces(b: int, others: int, rng: np.random.Generator) -> Images:
    """Draw crops of 25 x 25 pixels from Labeled Faces in the Wild, up to all of the hundred that show faces."""
    from skimage.data import lfw_subset

    pixels = lfw_subset()[rng.permutation(100)]  # the first hundred; the others show none
    labels = rng.integers(10, size=100)
    return _images(pixels, labels, (1, 25, 25), 0.4, 0.2).part(slice(b + others))


def _adult(b: int, others: int, rng: np.random.Generator) -> Images:
    """Make up rows like those of the ADULT census data: standardised numbers, then categories one-hot.

    Up to a quarter of the b rows are copies of another one with one category changed. No two copies change the same
    column, or two pairs of rows could have the same difference, and the batch were linearly dependent.
    """
    count = b + others
    numbers = _adult_numbers(count, rng)
    # Common values and rare ones: the k-th has 1/k^1.5 times the probability of the first.
    likely = [np.arange(1, size + 1) ** -1.5 for size in ADULT_CATEGORIES]
    categories = np.stack([rng.choice(len(p), count, p=p / p.sum()) for p in likely], axis=1)
    categories[:, EDUCATION] = numbers[:, 2] - 1

    copies = min(b // 4, len(ADULT_CATEGORIES))
    changed = rng.permutation(len(ADULT_CATEGORIES))[:copies]
    for copy, original, column in zip(range(b - copies, b), range(copies), changed, strict=True):
        size = ADULT_CATEGORIES[column]
        numbers[copy], categories[copy] = numbers[original], categories[original]
        categories[copy, column] = (categories[original, column] + rng.integers(1, size)) % size

    mean, std = np.array(ADULT_NUMBERS).T
    one_hot = [np.eye(size)[column] for size, column in zip(ADULT_CATEGORIES, categories.T, strict=True)]
    inputs = np.concatenate([(numbers - mean) / std, *one_hot], axis=1)
    return Images(inputs, rng.integers(2, size=count), (1, 1, inputs.shape[1]), 0.0, 1.0, classes=2)


def _adult_numbers(count: int, rng: np.random.Generator) -> Array:
    """Return whole numbers (count, 6), spread as those of the census: many ties, gains and losses mostly zero."""
    age = np.clip(17 + rng.gamma(2.5, 8.6, count), 17, 90)
    sample_weight = rng.lognormal(12.0, 0.55, count)
    education = np.clip(rng.normal(10.1, 2.6, count), 1, 16)
    gain = np.where(rng.random(count) < 0.083, np.minimum(rng.lognormal(8.9, 0.8, count), 99_999), 0)
    loss = np.where(rng.random(count) < 0.047, rng.normal(1870, 370, count), 0)
    hours = np.where(rng.random(count) < 0.47, 40, np.clip(rng.normal(40.8, 17, count), 1, 99))
    columns = np.stack([age, sample_weight, education, gain, loss, hours], axis=1)
    return np.asarray(np.rint(columns))


def _gaussian(b: int, others: int, rng: np.random.Generator, n: int = 784) -> Images:
    """Draw inputs without any structure, and labels."""
    inputs = rng.standard_normal((b + others, n))
    return Images(inputs, rng.integers(10, size=b + others), (1, 1, n), 0.0, 1.0)
