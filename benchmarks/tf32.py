"""What would products of tensor cores cost the searches? Float32 beside TF32, from the same starts.

    python -m benchmarks.tf32 --save tf32
    python -m benchmarks.tf32 --cells "ReLU 200/80" --seeds 4

Tensor cores multiply float32 numbers of which ten bits of the mantissa are left, and add the products up in float32. Here the
operands of every product in a search are rounded to that before NumPy multiplies them: to the nearest, ties to even,
and for starts also cut off, because libraries do not say which. What comes behind a search is float64, and stays as it is.
"""

from __future__ import annotations
import __future__

import argparse
import ast
import importlib
import inspect
import math
import pkgutil
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
from threadpoolctl import threadpool_limits

import spear_np
from benchmarks import environment
from benchmarks.chain import EXACT
from benchmarks.networks import Network, Shared, share
from benchmarks.problems import Problem, make_problem
from spear_np import LayerGradients, search
from spear_np.backend.algebra import product
from spear_np.backend.devices import CPU
from spear_np.backend.host import to_host
from spear_np.chain.layers import Chain
from spear_np.chain.sets import Open
from spear_np.factors.factorize import Factors, factorize
from spear_np.factors.signs import sign_model, smoother
from spear_np.network.judge import judge
from spear_np.network.problem import ChainProblem
from spear_np.network.read import Linked, read_chain
from spear_np.search import ChainSearch, blocks, levenberg, reflect
from spear_np.search.blocks import Block, Settings, descend
from spear_np.search.descent import CONVERGED_COSINE, Descent, _temper

Array = np.ndarray[Any, Any]
LOST = np.uint32(13)
"""Bits of the mantissa of float32 that TF32 has not."""
STARTS = 256
"""Of a block of the descent, and of Levenberg-Marquardt for a chain."""
REFLECTED = 16
"""Starts of reflections at once."""
REFLECTIONS = 40
"""Rounds of reflections with nothing known."""
RARE = 0.05
"""Share of starts below which it is printed with another digit."""
FIRST_SEED = 9100


def nearest(values: Array) -> Array:
    """float32 `values` rounded to TF32, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    half = np.uint32((1 << (LOST - 1)) - 1)
    with np.errstate(over="ignore"):
        rounded = (bits + half + ((bits >> LOST) & np.uint32(1))) >> LOST << LOST
    return np.where(np.isfinite(values), rounded.view(np.float32), values)


def cut_off(values: Array) -> Array:
    """float32 `values` with the bits that TF32 has not set to zero."""
    bits = np.ascontiguousarray(values).view(np.uint32) >> LOST << LOST
    return np.where(np.isfinite(values), bits.view(np.float32), values)


Rounding = Callable[[Array], Array]
WAYS: dict[str, Rounding | None] = {"float32": None, "TF32": nearest, "TF32, cut off": cut_off}


@contextmanager
def emulated(rounding: Rounding | None) -> Iterator[None]:
    """Round the operands of the products of float32 in all searches; None for leaving them as they are.

    Of the descent it is those of its steps: the others are few, and stay as they are.
    """
    if rounding is None:
        yield
        return

    def rounded(values: Any) -> Any:
        return rounding(values) if values.dtype == np.float32 else values

    def multiplied(left: Any, right: Any) -> Any:
        return rounded(left) @ rounded(right)

    def in_place(xp: Any, left: Any, right: Any, out: Any) -> Any:
        return product(xp, rounded(left), rounded(right), out)

    with ExitStack() as stack:
        for module in _searches():
            if vars(module).get("product") is product:
                stack.enter_context(patch.object(module, "product", in_place))
            if module is not blocks:
                stack.enter_context(patch.dict(vars(module), {CALLED: multiplied}))
                for function in _functions(module):
                    stack.callback(setattr, function, "__code__", function.__code__)
                    function.__code__ = _with_calls(function)
        yield


CALLED = "multiplied_by_tensor_cores"
"""Name of the function that takes the place of `@`."""


def _searches() -> list[ModuleType]:
    """All modules of searches."""
    names = (found.name for found in pkgutil.iter_modules(search.__path__))
    return [importlib.import_module(f"{search.__name__}.{name}") for name in names]


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """Functions and methods of a module that multiply matrices."""
    holders = [module, *(value for value in vars(module).values() if isinstance(value, type))]
    for holder in holders:
        for value in vars(holder).values():
            bare = getattr(value, "__func__", value)  # of class methods and static ones
            function = getattr(bare, "fget", bare)  # of properties
            if isinstance(function, FunctionType) and function.__code__.co_filename == module.__file__:
                tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
                if any(isinstance(node, ast.MatMult) for node in ast.walk(tree)):
                    yield function


class _Calls(ast.NodeTransformer):
    """Makes a call of each `@`."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        if not isinstance(node.op, ast.MatMult):
            return node
        return ast.Call(ast.Name(CALLED, ast.Load()), [node.left, node.right], [])


def _with_calls(function: FunctionType) -> CodeType:
    """The code of `function` with calls in the place of `@`."""
    source = textwrap.dedent(inspect.getsource(function))
    tree = ast.fix_missing_locations(_Calls().visit(ast.parse(source)))
    compiled = compile(tree, inspect.getfile(function), "exec", __future__.annotations.compiler_flag)
    return next(
        code
        for code in compiled.co_consts
        if isinstance(code, CodeType) and code.co_name == function.__name__
    )


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    title: str
    m: int
    b: int
    activation: str = ""
    """Of a chain; empty for a single layer."""
    seeds: int = 10
    whole: int = 10
    """Batches that are also inverted as a whole."""
    steps: int = 200
    """Of the descent."""


@dataclass(frozen=True)
class Ends:
    """What became of starts with nothing known."""

    count: int
    """Starts, or for reflections rounds of `reflect.ROUND_STEPS` steps of one start."""
    true: int
    """Ends on a true column or input."""
    distinct: int


CELLS = (
    Cell("one layer 200/20", 200, 20, seeds=40, whole=40),
    Cell("one layer 200/40", 200, 40, seeds=40, whole=40),
    Cell("one layer 200/60", 200, 60, seeds=40, whole=16, steps=800),
    Cell("one layer 1000/120", 1000, 120, seeds=20, whole=4),
    Cell("one layer 1000/200", 1000, 200, seeds=4, whole=0, steps=400),
    Cell("ReLU 200/80", 200, 80, "relu", seeds=24, whole=16),
    Cell("ReLU 200/90", 200, 90, "relu", seeds=72, whole=8),
    Cell("GELU 200/60", 200, 60, "gelu", seeds=6, whole=6),
)


class Columns:
    """A layer, the directions of its true columns, and the descent from rows."""

    def __init__(self, cell: Cell, seed: int) -> None:
        self.cell, self.seed = cell, seed
        self.problem: Problem = make_problem(cell.m, cell.b, seed)
        factors = factorize(LayerGradients(**self.problem.arguments), CPU)
        assert isinstance(factors, Factors)
        self.factors = factors

    def ends(self) -> Ends:
        """One block of starts."""
        space, model = self.factors.space, sign_model(self.factors)
        assert model is not None
        settings = Settings(thinning=False, steps=self.cell.steps)
        rng = np.random.default_rng(self.seed)
        descent = Descent.prepare(space, model, settings)
        picks = rng.integers(0, descent.weighting.rows.shape[0], STARTS)
        tempering = _temper(rng, settings, effort=0, few=False)
        block = Block.prepare(
            CPU,
            descent.weighting.rows,
            descent.weighting.rows[picks],
            tempering,
            settings,
            signs=smoother(space, model, None),
        )
        (found,) = descend(CPU, [block])
        # D C = U S for the coordinates C of the inputs.
        C = self.problem.images.inputs @ (to_host(self.problem.weight_grad).T @ space.to_basis)
        columns = descent.weighting.to_weighted @ (space.S[:, None] * np.linalg.inv(C))
        columns = columns / np.linalg.norm(columns, axis=0)
        near = np.abs(found @ columns) > CONVERGED_COSINE
        return Ends(STARTS, int(np.sum(np.any(near, axis=1))), int(np.sum(np.any(near, axis=0))))

    def whole(self) -> tuple[bool, int]:
        """Whether the whole batch was found, and after how many rounds."""
        answer = spear_np.invert(**self.problem.arguments, method="descent", time_limit=120.0, seed=self.seed)
        inputs, truth = to_host(answer.inputs), self.problem.images.inputs
        if len(inputs) < len(truth):
            return False, len(answer.history)
        errors = [np.min(np.max(np.abs(inputs - row), axis=1)) for row in truth]
        return bool(np.max(errors) <= EXACT * np.ptp(truth)), len(answer.history)


class Inputs:
    """A chain, its true inputs, and the search that suits it."""

    def __init__(self, cell: Cell, seed: int) -> None:
        self.cell, self.seed = cell, seed
        network = Network(widths=(cell.m,) * 5, activation=cell.activation)
        self.shared: Shared = share(network, cell.b, seed)
        linked = read_chain(self.shared.layers, CPU)
        assert isinstance(linked, Linked)
        self.chain: Chain = linked.chain

    def ends(self) -> Ends:
        """Starts of Levenberg-Marquardt, or rounds of reflections."""
        left = ChainProblem(self.chain).start().left
        rng = np.random.default_rng(self.seed)
        chosen: ChainSearch = levenberg.Levenberg(STARTS)
        count, rounds = STARTS, 1
        if self.cell.activation == "relu":
            chosen = reflect.Reflect(REFLECTED)
            count, rounds = REFLECTED * REFLECTIONS, REFLECTIONS
        memory = chosen.start(left, rng)
        ends = []
        for _ in range(rounds):
            some = chosen.propose(left, memory, rng)
            memory = some.memory
            ends.append(to_host(some.coordinates))
        return self._judged(np.concatenate(ends), count, left)

    def _judged(self, c: Array, count: int, left: Open) -> Ends:
        layer = left.chain.layers[0]
        basis = to_host(layer.gradients.weight_grad).astype(np.float64).T @ layer.space.to_basis
        truth = self.shared.inputs[0] @ basis
        right = []
        for row in range(len(c)):
            (one,) = judge(left.chain, c[row : row + 1], 1)
            distance = np.linalg.norm(truth - one.c, axis=1) / np.linalg.norm(truth, axis=1)
            if one.accepted and np.min(distance) < EXACT:
                right.append(int(np.argmin(distance)))
        return Ends(count, len(right), len(set(right)))

    def whole(self) -> tuple[bool, int]:
        """Whether the whole batch was found, and after how many steps of all starts together."""
        answer = spear_np.invert_chain(self.shared.layers, method="chain", time_limit=120.0, seed=self.seed)
        errors = self.shared.errors(to_host(answer.inputs))
        return bool(np.max(errors) <= EXACT), answer.proposals


def measured(cell: Cell, seeds: int | None) -> list[dict[str, Any]]:
    """What every way makes of every batch of a cell."""
    rows = []
    for number in range(seeds or cell.seeds):
        seed = FIRST_SEED + number
        batch = Inputs(cell, seed) if cell.activation else Columns(cell, seed)
        for name, rounding in WAYS.items():
            with emulated(rounding), np.errstate(all="ignore"):
                ends = batch.ends()
                row: dict[str, Any] = {"cell": cell.title, "seed": seed, "way": name}
                row |= {"count": ends.count, "true": ends.true, "distinct": ends.distinct}
                if number < cell.whole and name != "TF32, cut off":
                    row["whole"], row["rounds"] = batch.whole()
            rows.append(row)
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """The table: means over batches, and the mean difference to float32 with its standard error."""
    lines = []
    for title in dict.fromkeys(row["cell"] for row in rows):
        of_cell = [row for row in rows if row["cell"] == title]
        seeds = sorted({row["seed"] for row in of_cell})
        by = {(row["way"], row["seed"]): row for row in of_cell}
        shares = {way: np.array([_share(by[way, seed]) for seed in seeds]) for way in WAYS}
        whole = [seed for seed in seeds if "whole" in by["float32", seed]]
        rare = np.mean(shares["float32"]) < RARE
        for way in WAYS:
            ours = [by[way, seed] for seed in seeds]
            found, gain, rounds = "", "", ""
            if way != "float32":
                gain = _difference(100 * (shares[way] - shares["float32"]), ".2f" if rare else ".1f")
            if whole and "whole" in by[way, whole[0]]:
                tried = [by[way, seed] for seed in whole]
                found = f"{sum(row['whole'] for row in tried)} of {len(tried)}"
                rounds = f"{np.median([row['rounds'] for row in tried]):,.0f}"
                if way != "float32":
                    both = [s for s in whole if by[way, s]["whole"] and by["float32", s]["whole"]]
                    ratio = np.log([by[way, s]["rounds"] / by["float32", s]["rounds"] for s in both])
                    rounds += f" ({_factor(ratio)})"
            lines.append(
                (
                    f"{title}, {len(seeds)} batches" if way == "float32" else "",
                    way,
                    f"{100 * np.mean(shares[way]):{'.2f' if rare else '.1f'}} %",
                    gain,
                    f"{np.mean([row['distinct'] for row in ours]):.1f}",
                    found,
                    rounds,
                )
            )
    header = (
        "m/b",
        "products",
        "starts that end on a true one",
        "difference to float32, points",
        "distinct",
        "whole",
        "rounds or steps until whole",
    )
    return environment.markdown(header, lines)


def _share(row: dict[str, Any]) -> float:
    return float(row["true"] / row["count"])


def _difference(values: Array, form: str) -> str:
    """Mean and its standard error."""
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{np.mean(values):+{form}} ± {error:{form}}"


def _factor(logarithms: Array) -> str:
    """Geometric mean of what logarithms are given of, and its standard error."""
    error = np.std(logarithms, ddof=1) / math.sqrt(len(logarithms)) if len(logarithms) > 1 else math.nan
    return f"x {math.exp(np.mean(logarithms)):.2f} ± {error:.2f}" if len(logarithms) else "none"


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cells", nargs="+", help="titles, all by default")
    parser.add_argument("--seeds", type=int, help="batches a cell, instead of its own number")
    parser.add_argument("--save", help="name of a page in benchmarks/results")
    arguments = parser.parse_args()
    about = environment.sentence(environment.describe())
    rows: list[dict[str, Any]] = []
    with threadpool_limits(1):
        for cell in CELLS:
            if arguments.cells is None or cell.title in arguments.cells:
                rows += measured(cell, arguments.seeds)
                print(summary([row for row in rows if row["cell"] == cell.title]), flush=True)
    if arguments.save:
        page = (
            f"Float32 beside the products of tensor cores, emulated, from the same starts; Fashion-MNIST, seeds from {FIRST_SEED}, "
            "one thread. Standard errors are over batches.\n\n"
        )
        (environment.RESULTS / f"{arguments.save}.md").write_text(f"{page}{summary(rows)}\n{about}\n")


if __name__ == "__main__":
    main()
