"""Show what was recovered: the true images, rows of the gradient that was shared, and the recovered images.

pip install 'spear-np[pictures]'
python examples/pictures.py inverted.h5 examples/fashion_mnist_b16.h5 -o recovered.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from spear_io import open_dump, open_inversion
from spear_io.files.dump import Layer, Record, named
from spear_io.files.inversion import RecoveredLayer
from spear_io.show.evaluate import evaluate_layer

Array = np.ndarray[Any, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inversion", type=Path, help="what spear-np invert wrote")
    parser.add_argument("dump", type=Path, help="what it was given")
    parser.add_argument("-o", "--output", type=Path, default=Path("recovered.png"))
    parser.add_argument("--most", type=int, default=16, help="images to show")
    options = parser.parse_args()

    with open_inversion(options.inversion) as inversion, open_dump(options.dump) as dump:
        recovered = inversion.layers[0]
        record = named(dump.records, recovered.record, dump.place, "record")
        layer = named(record.layers, recovered.layer, record.place, "layer")
        originals, answers = pairs(recovered, record, layer, options.most)
        shared = layer.arrays["weight_grad"][: len(answers)]
        rows = {
            "original": to_pixels(originals, record),
            "shared gradient": to_grey(shared, record),
            "recovered": to_pixels(answers, record),
        }
        draw(rows, options.output)
    print(f"{options.output}: {len(answers)} images, status {recovered.status}")


def pairs(recovered: RecoveredLayer, record: Record, layer: Layer, most: int) -> tuple[Array, Array]:
    """Return true inputs (count, n) in the order of the dump and the recovered inputs matched to them."""
    if layer.truth is None:
        msg = "the dump holds no true inputs to compare with"
        raise SystemExit(msg)
    matches = [match for match in evaluate_layer(recovered, record, layer).rows if match.truth is not None]
    matches = sorted(matches, key=lambda match: match.truth or 0)[:most]
    if not matches:
        msg = f"nothing was recovered: {recovered.reason}"
        raise SystemExit(msg)
    originals = np.stack([layer.truth[match.truth] for match in matches])
    answers = np.stack([match.scale * recovered.inputs[match.row] for match in matches])
    return originals, answers


def to_pixels(inputs: Array, record: Record) -> Array:
    """Undo normalisation and flattening: (count, n) to (count, height, width[, 3]) between 0 and 1."""
    info = record.info
    images = to_images(inputs, record)
    if info.input_mean is not None and info.input_std is not None:
        images = images * np.asarray(info.input_std) + np.asarray(info.input_mean)
    return images.clip(0, 1)


def to_grey(gradient: Array, record: Record) -> Array:
    """Show every row of the gradient (count, n) as a picture: zero is grey, its largest entry black or white."""
    largest = np.abs(gradient).max(axis=1, keepdims=True)
    return to_images(0.5 + 0.5 * gradient / np.where(largest > 0, largest, 1), record)


def to_images(values: Array, record: Record) -> Array:
    """Undo flattening: (count, n) to (count, height, width, channels)."""
    shape = record.info.input_shape
    if shape is None or len(shape) not in (2, 3):
        msg = f"record '{record.name}' does not say the shape of an image: set its attribute 'input_shape'"
        raise SystemExit(msg)
    channels = shape[0] if len(shape) == 3 else 1
    # Channels first, as networks have them, to channels last, as pictures have them.
    return values.reshape(len(values), channels, *shape[-2:]).transpose(0, 2, 3, 1)


def draw(rows: dict[str, Array], path: Path) -> None:
    """Write one row of pictures for each entry as a PNG."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    count = max(len(images) for images in rows.values())
    label, width, height = 1.2, 0.6 * count + 1.2, 0.65 * len(rows)
    figure, axes = plt.subplots(len(rows), count, figsize=(width, height), squeeze=False)
    figure.subplots_adjust(left=label / width, right=0.998, bottom=0.02, top=0.98, wspace=0.06, hspace=0.06)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image.squeeze(), cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        for axis in line[len(images) :]:
            axis.set_axis_off()
        line[0].set_ylabel(name, rotation="horizontal", ha="right", va="center")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
