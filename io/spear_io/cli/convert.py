"""The command `spear-np convert`."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from .notes import say
from .options import Force, InputMean, InputShape, InputStd, Json
from .streams import complete_already

Number = TypeVar("Number", int, float)


def convert(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[SOURCE…] DUMP.h5", help="What to read, and the dump to write.", show_default=False
        ),
    ],
    gradients: Annotated[
        bool, typer.Option("--gradients", help="All arrays of SOURCE are gradients, named as in the model.")
    ] = False,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="FILE", help="Where the weights are, if not in SOURCE.")
    ] = None,
    before: Annotated[
        Path | None,
        typer.Option("--before", metavar="A", help="Instead of SOURCE: the model before the step …"),
    ] = None,
    after: Annotated[Path | None, typer.Option("--after", metavar="B", help="… and after it.")] = None,
    successive: Annotated[
        bool,
        typer.Option(
            "--successive",
            help="SOURCE… (or a folder of them) are models of one training, each a step after the one before.",
        ),
    ] = False,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", metavar="η", help="Of the step between two models.")
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            "--weight-decay",
            metavar="λ",
            help="Of that step, if it is known; else the update itself tells it.",
        ),
    ] = None,
    local_steps: Annotated[
        int | None, typer.Option("--local-steps", min=1, help="Steps between two models.")
    ] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="[LAYER.]PART=NAME",
            help="Take this array as weight_grad, bias_grad, weight, bias or inputs; repeatable.",
        ),
    ] = None,
    orientation: Annotated[
        Literal["mn", "nm"] | None,
        typer.Option("--orientation", help="mn: rows of a matrix are output units; nm: columns are."),
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option("--layer", metavar="NAME", help="Only this layer; repeatable.")
    ] = None,
    activation: Annotated[
        list[str] | None,
        typer.Option(
            "--activation",
            metavar="[LAYER=]NAME[:PARAMETER=X,…]",
            help="What is applied to the output of these layers, or of one: relu, fc2=leaky_relu:negative_slope=0.2; "
            "repeatable.",
        ),
    ] = None,
    follows: Annotated[
        list[str] | None,
        typer.Option(
            "--follows",
            metavar="[LAYER=EARLIER]",
            help="Each layer takes the activated output of the one before, with nothing in between; or LAYER takes "
            "that of EARLIER (none: of no other); repeatable.",
        ),
    ] = None,
    loss: Annotated[
        str | None, typer.Option("--loss", metavar="NAME", help="E.g. cross_entropy, mse.")
    ] = None,
    record: Annotated[
        str | None,
        typer.Option(
            "--record", metavar="NAME", help="Name of the record; of several, the names of their files."
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="If it is known.")] = None,
    input_shape: InputShape = None,
    input_mean: InputMean = None,
    input_std: InputStd = None,
    feature_names: Annotated[
        str | None,
        typer.Option(
            "--feature-names", metavar="AGE,INCOME,…", help="Of the columns of a table, one a feature."
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Make a dump of files of gradients, with a record for each, or of models before and after steps.

    Reads .npz, .npy and folders of .npy, .safetensors and folders of them, MATLAB .mat, Keras .weights.h5, .keras and
    .h5, Flax msgpack, Orbax checkpoints, any other HDF5, and PyTorch checkpoints.
    """
    import spear_np

    from ..convert import Origin
    from ..convert import convert as convert_files
    from ..convert import successive as successive_models
    from ..files.dump import RecordInfo
    from ..many.sources import find_files, labels_of
    from ..show.tables import print_conversions, print_json
    from .exit_status import INCOMPLETE
    from .layer_options import said_of_layers

    sources, output = _paths(paths, before, after)
    two_models = before is not None or successive
    if two_models and (gradients or model or maps):
        msg = "cannot be combined with --gradients, --model or --map"
        raise typer.BadParameter(msg, param_hint="--before" if before else "--successive")
    if before is not None and successive:
        msg = "cannot be combined with --before and --after"
        raise typer.BadParameter(msg, param_hint="--successive")
    if not two_models and (learning_rate is not None or local_steps is not None):
        msg = "only describes the step between two models (--before, --after)"
        raise typer.BadParameter(
            msg, param_hint="--learning-rate" if local_steps is None else "--local-steps"
        )
    if learning_rate is not None and not 0 < learning_rate < float("inf"):
        msg = f"{learning_rate:g} is not a positive number"
        raise typer.BadParameter(msg, param_hint="--learning-rate")
    if weight_decay is not None:
        _check_decay(weight_decay, known_rate=not two_models or learning_rate is not None)
    if loss is not None and not loss.strip():
        msg = "is empty: give a name, e.g. cross_entropy"
        raise typer.BadParameter(msg, param_hint="--loss")
    info = RecordInfo(
        input_shape=numbers(input_shape, int, "--input-shape"),
        input_mean=numbers(input_mean, float, "--input-mean"),
        input_std=numbers(input_std, float, "--input-std"),
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        local_steps=local_steps,
        loss=loss,
        feature_names=None if feature_names is None else tuple(feature_names.split(",")),
    )
    if before is not None:
        origins = {record or "record-0": Origin(before=before, after=after)}
    elif successive:
        origins = successive_models(find_files(sources, within_folders=True))
    else:
        files = find_files(sources)
        names = (record or "record-0",) if len(files) == 1 else labels_of(files)
        chosen = tuple(maps or ())
        origins = {
            name: Origin(path, gradients, model, maps=chosen) for name, path in zip(names, files, strict=True)
        }
    if record is not None and len(origins) > 1:
        msg = f"is one name, but there are {len(origins)} records, which are called after their files"
        raise typer.BadParameter(msg, param_hint="--record")
    converted = convert_files(
        origins,
        output,
        info=info,
        layers=layer or (),
        orientation=orientation,
        said=said_of_layers(activation or (), follows or ()),
        replace_any=force,
    )
    complete_already(output)
    first, *others = converted.conversions
    left_out = [f"left out: {error}" for error in converted.left_out]
    if json:
        print_json(
            {
                "command": "convert",
                "version": spear_np.__version__,
                "source": str(sources[0]) if len(sources) == 1 else None,
                "sources": [str(path) for path in sources],
                "output": str(output),
                **asdict(first),
                "others": [asdict(one) for one in others],
                "left_out": left_out,
            }
        )
    else:
        print_conversions(converted.conversions, str(output))
    say(left_out)
    if left_out:
        raise typer.Exit(INCOMPLETE)


def _check_decay(weight_decay: float, *, known_rate: bool) -> None:
    """Refuse a weight decay that is none, or that cannot be set against a step of unknown size."""
    if not math.isfinite(weight_decay):
        msg = f"{weight_decay:g} is not a number"
        raise typer.BadParameter(msg, param_hint="--weight-decay")
    if not known_rate:
        msg = "counts only with --learning-rate: leave it out, and the update itself tells it"
        raise typer.BadParameter(msg, param_hint="--weight-decay")


def _paths(paths: list[Path], before: Path | None, after: Path | None) -> tuple[list[Path], Path]:
    """Return SOURCE…, none if two models stand for them, and DUMP.h5."""
    if (before is None) != (after is None):
        msg = "two models are needed: --before A --after B"
        raise typer.BadParameter(msg, param_hint="--before" if before is None else "--after")
    if len(paths) < 2 if before is None else len(paths) != 1:
        usage = "SOURCE… DUMP.h5" if before is None else "--before A --after B DUMP.h5"
        msg = f"{len(paths)} names are given, but it is: spear-np convert {usage}"
        raise typer.BadParameter(msg, param_hint="DUMP.h5")
    return paths[:-1], paths[-1]


def numbers(text: str | None, kind: type[Number], option: str) -> tuple[Number, ...] | None:
    """Return numbers separated by commas."""
    if text is None:
        return None
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        msg = f"'{text}' is not a list of numbers separated by commas"
        raise typer.BadParameter(msg, param_hint=option) from error
    if not all(math.isfinite(number) for number in numbers) or (
        option != "--input-mean" and min(numbers) <= 0
    ):
        msg = f"'{text}' must be {'numbers' if option == '--input-mean' else 'positive'}"
        raise typer.BadParameter(msg, param_hint=option)
    return numbers
