"""Which layer feeds which in a PyTorch model, through what: as the adapter sees it, of models it has never seen."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from spear_io import open_dump
from spear_np import ACTIVATIONS, Activation
from spear_np.factors.activation import as_activation
from tests.backends import values_of

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'spear-np[torch]'")

from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from spear_io.adapters.to_torch import Recorder, from_gradients, from_weights, record_gradients

B, N, M = 7, 16, 12
Function = Callable[[Any], Any]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(17)


def step(model: Any, inputs: Any = None, loss: Function | None = None, **options: Any) -> Recorder:
    """Record one step, and check what is said against the numbers."""
    inputs = (
        4 * torch.randn(B, N) if inputs is None else inputs
    )  # so that every activation shows both its ends
    with record_gradients(model, **options) as recorder:
        (loss or cross_entropy)(model(inputs)).backward()
    check(recorder)
    return recorder


def cross_entropy(logits: Any) -> Any:
    logits = logits.reshape(-1, logits.shape[-1])
    return functional.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1])


def check(recorder: Recorder) -> None:
    """Where a layer follows another, its inputs are the activated outputs of the other, row by row."""
    for layer in recorder.layers.values():
        if layer.follows is None or layer.inputs is None:
            continue
        before = recorder.layers[layer.follows]
        outputs = values_of(before.inputs).astype(float) @ values_of(before.weight).astype(float).T
        outputs += 0 if before.bias is None else before.bias[:]
        expected, _ = as_activation(before.activation).value_and_slope(outputs)
        assert layer.inputs.shape == expected.shape
        np.testing.assert_allclose(layer.inputs[:], expected, rtol=1e-4, atol=1e-5)


def said(recorder: Recorder) -> dict[str, tuple[str, str | None, str | None]]:
    return {k: (str(layer.activation), layer.follows, layer.between) for k, layer in recorder.layers.items()}


class Pair(nn.Module):  # type: ignore[misc]
    """Two layers with something in between, and a head that must not be taken for a follower of the first."""

    def __init__(self, after: Function, before: Function | None = None, m: int = M) -> None:
        super().__init__()
        self.before, self.fc1, self.after, self.fc2 = before, nn.Linear(N, m), after, nn.Linear(m, 5)

    def forward(self, inputs: Any) -> Any:
        inputs = inputs if self.before is None else self.before(inputs)
        return self.fc2(self.after(self.fc1(inputs)))


def slopes() -> Any:
    return torch.linspace(-0.2, 0.4, M)


def channels() -> Any:
    module = nn.PReLU(M)
    with torch.no_grad():
        module.weight.copy_(slopes())
    return module


F, aten = functional, torch.ops.aten
FORMS: dict[str, tuple[Activation, list[Function]]] = {
    "relu": (
        Activation("relu"),
        [
            nn.ReLU(),
            nn.ReLU(inplace=True),
            F.relu,
            F.relu_,
            torch.relu,
            lambda z: z.relu(),
            lambda z: z.clone().relu_(),
            aten.relu,
            aten.relu.default,
            lambda z: z.clamp(min=0),
            lambda z: torch.clamp_min(z, 0),
            lambda z: z.clamp(min=torch.zeros(())),
            lambda z: z.clamp_(0, None),
            nn.Threshold(0, 0),
            nn.Hardtanh(0, float("inf")),
            lambda z: torch.maximum(z, torch.zeros_like(z)),
            lambda z: torch.maximum(torch.zeros(M), z),
            lambda z: torch.max(z, torch.zeros(())),
            lambda z: torch.where(z > 0, z, torch.zeros_like(z)),
            lambda z: torch.where(z < 0, 0.0, z),
            lambda z: z * (z > 0),
            lambda z: (z > 0).float() * z,
            lambda z: z.masked_fill(z < 0, 0),
            lambda z: z.masked_fill_(z < 0, 0.0),
        ],
    ),
    "relu6": (
        Activation("relu6"),
        [nn.ReLU6(), F.relu6, nn.Hardtanh(0, 6), lambda z: z.clamp(0, 6), lambda z: z.clip_(min=0.0, max=6.0)],
    ),
    "leaky_relu": (
        Activation("leaky_relu", {"negative_slope": 0.2}),
        [
            nn.LeakyReLU(0.2),
            nn.LeakyReLU(0.2, inplace=True),
            lambda z: F.leaky_relu(z, 0.2),
            lambda z: F.leaky_relu_(z, negative_slope=0.2),
            lambda z: aten.leaky_relu(z, 0.2),
            nn.RReLU(0.1, 0.3).eval(),
        ],
    ),
    "prelu": (
        Activation("prelu", {"slope": slopes().numpy()}),
        [channels(), lambda z: F.prelu(z, slopes()), lambda z: torch.prelu(z, slopes()), lambda z: z.prelu(slopes())],
    ),
    "elu": (
        Activation("elu", {"alpha": 0.5}),
        [nn.ELU(0.5), nn.ELU(0.5, inplace=True), lambda z: F.elu(z, 0.5), lambda z: F.elu_(z, alpha=0.5)],
    ),
    "celu": (
        Activation("celu", {"alpha": 2}),
        [nn.CELU(2), nn.CELU(2, inplace=True), lambda z: F.celu(z, 2), lambda z: torch.celu_(z, 2)],
    ),
    "selu": (Activation("selu"), [nn.SELU(), nn.SELU(inplace=True), F.selu, torch.selu, torch.selu_]),
    "gelu": (Activation("gelu"), [nn.GELU(), F.gelu, aten.gelu]),
    "gelu_tanh": (Activation("gelu_tanh"), [nn.GELU("tanh"), lambda z: F.gelu(z, approximate="tanh")]),
    "silu": (Activation("silu"), [nn.SiLU(), nn.SiLU(inplace=True), F.silu, aten.silu]),
    "mish": (Activation("mish"), [nn.Mish(), nn.Mish(inplace=True), F.mish]),
    "softplus": (
        Activation("softplus", {"beta": 2}),
        [nn.Softplus(2), lambda z: F.softplus(z, 2), lambda z: F.softplus(z, beta=2, threshold=30)],
    ),
    "tanh": (Activation("tanh"), [nn.Tanh(), torch.tanh, F.tanh, lambda z: z.tanh(), lambda z: z.tanh_(), aten.tanh]),
    "sigmoid": (
        Activation("sigmoid"),
        [nn.Sigmoid(), torch.sigmoid, F.sigmoid, lambda z: z.sigmoid(), lambda z: z.sigmoid_(), torch.special.expit],
    ),
    "hardswish": (Activation("hardswish"), [nn.Hardswish(), nn.Hardswish(inplace=True), F.hardswish]),
    "hardtanh": (
        Activation("hardtanh", {"low": -0.5, "high": 2}),
        [
            nn.Hardtanh(-0.5, 2),
            nn.Hardtanh(-0.5, 2, inplace=True),
            lambda z: F.hardtanh(z, -0.5, 2),
            lambda z: torch.clamp(z, -0.5, 2),
        ],
    ),
    "none": (Activation("none"), [nn.Identity(), lambda z: z, lambda z: z + 0, lambda z: z[...], lambda z: 1 * z]),
}  # fmt: skip


def test_the_table_is_whole() -> None:
    assert set(FORMS) == set(ACTIVATIONS)


@pytest.mark.parametrize(
    ("activation", "form"),
    [
        pytest.param(activation, form, id=f"{name}-{number}")
        for name, (activation, forms) in FORMS.items()
        for number, form in enumerate(forms)
    ],
)
def test_every_activation_is_seen_in_every_form(activation: Activation, form: Function) -> None:
    recorder = step(Pair(form))
    assert as_activation(recorder.layers["fc1"].activation) == activation
    assert recorder.layers["fc2"].follows == "fc1"


REARRANGED: dict[str, Function] = {
    "transposed and back": lambda z: z.T.relu().T,
    "swapped and back": lambda z: torch.relu(z.swapaxes(0, 1)).swapaxes(0, 1),
    "flipped and back": lambda z: z.flip(1).relu().flip(1),
    "in another shape": lambda z: z.view(-1, 3, 4).permute(1, 0, 2).relu().permute(1, 0, 2).flatten(1),
    "laid out anew": lambda z: z.T.contiguous().view(-1).relu().view(M, -1).T,
    "raveled": lambda z: z.ravel().relu().reshape(z.shape),
    "as itself": lambda z: z.view_as(z).relu().expand_as(z).contiguous(),
    "cast": lambda z: z.double().relu().float(),
    "idle": nn.Sequential(nn.Dropout(0.5).eval(), nn.ReLU(), nn.Dropout(0.0), nn.Identity()),
    "plus zero": lambda z: (z + 0.0).relu() * 1.0 - 0,
    "checkpointed": lambda z: checkpoint(torch.relu, z, use_reentrant=False),
    "beside things without a gradient": lambda z: z.relu() * (z.detach() > z.shape[1]).logical_not(),
}  # fmt: skip


@pytest.mark.parametrize("after", REARRANGED.values(), ids=REARRANGED.keys())
def test_what_changes_nothing_stands_not_between(after: Function) -> None:
    assert said(step(Pair(after))) == {"fc1": ("relu", None, None), "fc2": ("none", "fc1", None)}


class Reversal(torch.autograd.Function):  # type: ignore[misc, name-defined]
    @staticmethod
    def forward(ctx: Any, z: Any) -> Any:
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return -grad


def _swish(z):  # type: ignore[no-untyped-def]
    return torch.sigmoid(z) * z


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript itself, which models still use
    scripted = torch.jit.script(_swish)


def spoiled(z: Any) -> Any:
    hidden = z.sigmoid()
    hidden.data.mul_(0.5)
    return hidden


def no_grad(change: Function) -> Function:
    def after(z: Any) -> Any:
        hidden = functional.silu(z)
        with torch.no_grad():
            change(hidden)
        return hidden

    return after


OBSTACLES: dict[str, tuple[Function, str, str]] = {
    "dropout": (nn.Sequential(nn.ReLU(), nn.Dropout()), "relu", "dropout"),
    "dropout first": (nn.Sequential(nn.Dropout(), nn.ReLU()), "dropout", "dropout+relu"),
    "norms": (nn.Sequential(nn.GELU(), nn.LayerNorm(M), nn.BatchNorm1d(M)), "gelu", "layer_norm+batch_norm"),
    "residual": (lambda z: z.relu() + z.relu().flip(0), "relu", "flip+add"),
    "residual before": (lambda z: z + z.relu(), "add+relu", "add"),
    "concatenated": (lambda z: torch.cat([z[:, :6].relu(), z[:, 6:].tanh()], 1), "relu+tanh", "getitem+cat"),
    "pooled": (lambda z: F.max_pool1d(z.relu().repeat(1, 2), 2), "relu", "repeat+max_pool1d"),
    "convolved": (lambda z: F.conv1d(z.relu()[:, None], torch.ones(1, 1, 1) * 2)[:, 0], "relu", "conv1d"),
    "two activations": (lambda z: z.relu().tanh(), "relu", "tanh"),
    "scaled": (lambda z: z.relu() * 2, "relu", "mul"),
    "changed in place": (lambda z: functional.silu(z).mul_(2), "silu", "mul"),
    "partly overwritten": (lambda z: [z.__setitem__(0, 0.0), z][1].tanh(), "setitem", "setitem+tanh"),
    "changed without gradients": (no_grad(lambda h: h.mul_(2)), "silu", "mul"),
    "changed without gradients through a view": (no_grad(lambda h: h.view(-1).mul_(2)), "silu", "unknown"),
    "a learned shift, zero so far": (lambda z: z.relu() + nn.Parameter(torch.zeros(M)), "relu", "add"),
    "an elu of another scale": (lambda z: aten.elu(z, 1.0, 2.0), "modified_elu", "elu"),
    "a dropout in place": (nn.Sequential(nn.SiLU(), nn.Dropout(inplace=True)), "silu", "dropout"),
    "units reordered": (lambda z: z.relu().flip(1), "relu", "flip"),
    "rows reordered": (lambda z: z.relu().roll(1, 0), "relu", "roll"),
    "some rows": (lambda z: z.relu()[1:], "relu", "getitem"),
    "the first rows": (lambda z: z.relu()[:3], "relu", "getitem"),
    "every row twice": (lambda z: z.relu()[None].expand(2, -1, -1), "relu", "expand"),
    "rows mixed": (lambda z: z.relu().T.reshape(B, M), "relu", "transpose+reshape"),
    "a gradient reversed": (lambda z: Reversal.apply(z.relu()), "relu", "reversal"),
    "a straight-through estimator": (lambda z: z + (z.relu() - z).detach(), "add", "sub+detach+add"),
    "hidden from autograd": (spoiled, "sigmoid", "unknown"),
    "out of sight": (scripted, "unknown", "sigmoid+mul"),
    "random slopes": (nn.RReLU(), "rrelu", "rrelu"),
    "a softplus that ends early": (nn.Softplus(1, 2), "modified_softplus", "softplus"),
    "shared slopes elsewhere": (lambda z: F.prelu(z.T.flip(1), torch.rand(B)).flip(1).T, "modified_prelu",
                                "transpose+flip+prelu"),
    "cut off elsewhere": (lambda z: z.clamp(min=0.1), "clamp", "clamp"),
    "a masked batch": (lambda z: z * (torch.arange(B) > 2)[:, None], "mul", "mul"),
    "shared": (lambda z: [h := z.relu(), h + 0 * h.sum()][0].clone() + 0 * h.mean(), "relu", "mean+mul+add"),
}  # fmt: skip


@pytest.mark.parametrize(("after", "activation", "between"), OBSTACLES.values(), ids=OBSTACLES.keys())
def test_what_stands_between_is_named(after: Function, activation: str, between: str) -> None:
    recorder = step(Pair(after))
    assert said(recorder) == {"fc1": (activation, None, None), "fc2": ("none", None, between)}


FRONTS: dict[str, tuple[Function, Any, str | None]] = {
    "convolution": (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        torch.randn(B, 1, 6, 6),
        "conv2d+batch_norm+relu+max_pool2d",
    ),
    "frozen": (
        nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten()).requires_grad_(False),
        torch.randn(B, 1, 6, 6),
        "conv2d",
    ),
    "embedding": (nn.Sequential(nn.Embedding(9, 8), nn.Flatten()), torch.randint(0, 9, (B, 2)), "embedding"),
    "nothing": (nn.Flatten(), torch.randn(B, 4, 4), None),
}  # fmt: skip


@pytest.mark.parametrize(("front", "inputs", "between"), FRONTS.values(), ids=FRONTS.keys())
def test_what_stands_before_the_first_layer_is_named(
    front: Function, inputs: Any, between: str | None
) -> None:
    assert said(step(Pair(nn.Tanh(), front), inputs))["fc1"] == ("tanh", None, between)


WIDTHS = (N, 20, 22, 24, 21, 5)
FIVE = {
    "0": ("gelu", None, None),
    "2": ("leaky_relu(negative_slope=0.3)", "0", None),
    "4": ("gelu", "2", None),
    "6": ("leaky_relu(negative_slope=0.3)", "4", None),
    "8": ("none", "6", None),
}
FIVE_DUMPED = [
    ("gelu", None, None),
    ("leaky_relu", 0.3, 0),
    ("gelu", None, 1),
    ("leaky_relu", 0.3, 2),
    ("none", None, 3),
]


def five() -> Any:
    layers: list[Any] = []
    for number, (n, m) in enumerate(pairwise(WIDTHS)):
        layers += [nn.Linear(n, m), nn.LeakyReLU(0.3) if number % 2 else nn.GELU()]
    return nn.Sequential(*layers[:-1])


class ByHand(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(module for module in five() if isinstance(module, nn.Linear))

    def forward(self, hidden: Any) -> Any:
        first, second, third, fourth, fifth = self.layers
        hidden = functional.leaky_relu(second(functional.gelu(first(hidden))), 0.3)
        return fifth(functional.leaky_relu_(fourth(torch.nn.functional.gelu(third(hidden))), 0.3))


class Wrapped(nn.Module):  # type: ignore[misc]
    def __init__(self, around: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.inner, self.around = five(), around

    def forward(self, inputs: Any) -> Any:
        return self.around(self.inner, inputs)


def with_full_backward_hooks() -> Any:
    model = five()
    for module in model.modules():
        module.register_full_backward_hook(lambda *_: None)
        module.register_full_backward_pre_hook(lambda *_: None)
    return model


def with_forward_hooks() -> Any:
    model, notes = five(), []
    for module in model:
        module.register_forward_hook(lambda _, __, output: notes.append(output.square().sum()))
        module.register_forward_hook(lambda _, __, output: notes.append(output.detach().mean()))
    return model


def compiled(backend: str, *, before: bool = False, in_place: bool = False) -> Any:
    model = five()
    if in_place:
        model.compile(backend=backend)
    else:
        model = torch.compile(model, backend=backend)
    if before:
        cross_entropy(model(torch.randn(B, N))).backward()
        model.zero_grad()
    return model


WAYS: dict[str, Callable[[], Any]] = {
    "sequential": five,
    "by hand": ByHand,
    "full backward hooks": with_full_backward_hooks,
    "forward hooks": with_forward_hooks,
    "compiled": lambda: compiled("eager"),
    "compiled by AOTAutograd": lambda: compiled("aot_eager"),
    "compiled and used before": lambda: compiled("aot_eager", before=True),
    "compiled in place": lambda: compiled("eager", in_place=True),
    "compiled in the forward pass": lambda: Wrapped(
        lambda model, x: torch.compile(model, backend="eager")(x)
    ),
    "checkpointed": lambda: Wrapped(lambda model, x: checkpoint(model, x, use_reentrant=False)),
    "checkpointed by parts": lambda: Wrapped(
        lambda model, x: checkpoint_sequential(model, 3, x, use_reentrant=False)
    ),
    "functional call": lambda: Wrapped(
        lambda model, x: torch.func.functional_call(model, dict(model.named_parameters()), (x,))
    ),
    "data parallel": lambda: nn.DataParallel(five()),
}


NO_INPUT_GRADIENT = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


@NO_INPUT_GRADIENT
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_five_layers_are_seen_whatever_is_around_them(way: Callable[[], Any], tmp_path: Path) -> None:
    recorder = step(way())
    recorder.write(tmp_path / "d.h5")
    assert dumped(tmp_path / "d.h5") == FIVE_DUMPED
    assert recorder.skipped == {}


def dumped(path: Path) -> list[tuple[str, Any, Any]]:
    """Return activation, slope, and the number of the layer that it follows, of every layer."""
    with open_dump(path) as dump:
        (record,) = dump.records
        assert (record.info.loss, record.info.loss_reduction) == ("cross_entropy", "mean")
        names = [layer.name for layer in record.layers]
        return [
            (
                layer.activation.name,
                layer.activation.parameters.get("negative_slope"),
                None if layer.follows is None else names.index(layer.follows),
            )
            for layer in record.layers
        ]


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("options", [{}, {"static_graph": True}], ids=str)
def test_distributed_data_parallel(process_group: None, options: dict[str, Any], tmp_path: Path) -> None:
    step(nn.parallel.DistributedDataParallel(five(), **options)).write(tmp_path / "d.h5")
    assert dumped(tmp_path / "d.h5") == FIVE_DUMPED


@NO_INPUT_GRADIENT
@pytest.mark.skipif(
    importlib.util.find_spec("opacus") is None, reason="Opacus is not installed: pip install opacus"
)
def test_gradients_per_sample_of_opacus(tmp_path: Path) -> None:
    from opacus import GradSampleModule

    step(GradSampleModule(five())).write(tmp_path / "d.h5")
    assert dumped(tmp_path / "d.h5") == FIVE_DUMPED


def test_in_bfloat16_under_autocast() -> None:
    model = five()
    with record_gradients(model) as recorder, torch.autocast("cpu", dtype=torch.bfloat16):
        cross_entropy(model(torch.randn(B, N))).backward()
    assert said(recorder) == FIVE


def test_a_reentrant_checkpoint_hides_what_it_runs() -> None:
    model = Wrapped(lambda inner, x: checkpoint(inner, x, use_reentrant=True))
    recorder = step(model, torch.randn(B, N, requires_grad=True))
    assert {value[:2] for value in said(recorder).values()} == {("unknown", None)}


def test_only_what_the_loss_depends_on_counts() -> None:
    model = five()
    with record_gradients(model) as recorder:
        for _ in range(3):
            cross_entropy(model(torch.randn(B, N))).backward()
        model(torch.randn(B, N)).relu().sum()  # never goes back
    check(recorder)
    assert said(recorder) == FIVE
    assert len(values_of(recorder.layers["0"].inputs)) == 3 * B


@pytest.mark.parametrize("act", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_feed_forward_block_of_a_transformer(act: str, norm_first: bool, training: bool) -> None:
    options: dict[str, Any] = {"activation": act, "norm_first": norm_first, "batch_first": True}
    model = nn.TransformerEncoderLayer(N, 2, 24, dropout=0.0 if training else 0.1, **options).train(training)
    recorder = step(model, torch.randn(2, 3, N))
    assert recorder.layers["linear1"].activation == act
    assert recorder.layers["linear2"].follows == "linear1"
    between = recorder.layers["linear1"].between
    assert between is not None
    assert set(between.split("+")) == {"multi_head_attention", "add", "layer_norm"}


def test_dropout_in_a_transformer_stands_between() -> None:
    recorder = step(nn.TransformerEncoderLayer(N, 2, 24, batch_first=True), torch.randn(2, 3, N))
    assert said(recorder)["linear2"] == ("dropout", None, "dropout")


class Layers(nn.Module):  # type: ignore[misc]
    """Square layers, called as `run` says."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.norm = nn.Linear(N, N), nn.Linear(N, N), nn.Linear(N, N), nn.LayerNorm(N)
        self.run = run

    def forward(self, inputs: Any) -> Any:
        return self.run(self, inputs)


def residual(net: Any, x: Any) -> Any:
    hidden = net.a(x).relu()
    return net.c(net.norm(hidden + net.b(hidden).tanh()))


NETS: dict[str, tuple[Callable[..., Any], dict[str, tuple[str, str | None, str | None]]]] = {
    "residual": (
        residual,
        {"a": ("relu", None, None), "b": ("tanh", "a", None), "c": ("none", None, "add+layer_norm")},
    ),
    "block": (
        lambda net, x: net.c(x + net.b(functional.gelu(net.a(net.norm(x))))),
        {"a": ("gelu", None, "layer_norm"), "b": ("add", "a", None), "c": ("none", None, "add")},
    ),
    "two heads": (
        lambda net, x: [h := net.a(x).relu(), torch.cat([net.b(h), net.c(h)])][1],
        {"a": ("relu", None, None), "b": ("cat", "a", None), "c": ("cat", "a", None)},
    ),
    "recurrent": (
        lambda net, x: net.c(net.b(net.b(net.a(x).tanh()).tanh()).tanh()),
        {"a": ("tanh", None, None), "b": ("tanh", None, "linear+tanh"), "c": ("none", None, "unknown")},
    ),
    "siamese": (
        lambda net, x: net.b(net.a(x).tanh()) - net.b(net.a(x.flip(0)).tanh()),
        {"a": ("tanh", None, None), "b": ("sub", "a", None)},
    ),
    "siamese, crossed": (
        lambda net, x: [h := net.a(x).tanh(), k := net.a(x.flip(0)).tanh(), net.b(k) - net.b(h)][2],
        {"a": ("tanh", None, None), "b": ("sub", None, "unknown")},
    ),
    "not in the order of the modules": (
        lambda net, x: net.a(functional.mish(net.c(functional.silu(net.b(x))))),
        {"b": ("silu", None, None), "c": ("mish", "b", None), "a": ("none", "c", None)},
    ),
    "tokens": (
        lambda net, x: net.b(net.a(x.view(-1, 1, N)).relu().transpose(0, 1)).transpose(0, 1),
        {"a": ("relu", None, None), "b": ("none", "a", None)},
    ),
    "frozen in the middle": (
        lambda net, x: [net.b.requires_grad_(False), net.c(net.b(net.a(x).relu()).tanh())][1],
        {"a": ("relu", None, None), "c": ("none", None, "linear+tanh")},
    ),
    "gated": (
        lambda net, x: net.c(functional.silu(net.a(x)) * net.b(x)),
        {"a": ("silu", None, None), "b": ("mul", None, None), "c": ("none", None, "mul")},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("run", "expected"), NETS.values(), ids=NETS.keys())
def test_other_ways_to_go(run: Callable[..., Any], expected: dict[str, Any]) -> None:
    recorder = step(Layers(run))
    assert said(recorder) == expected
    assert list(recorder.layers) == list(expected)


def test_a_layer_that_was_not_chosen_breaks_the_chain() -> None:
    recorder = step(five(), layers=["0", "4", "6"])
    assert said(recorder) == {
        "0": FIVE["0"],
        "4": ("gelu", None, "linear+leaky_relu"),
        "6": FIVE["6"],
    }


def test_an_output_replaced_by_a_hook_is_not_that_of_the_layer() -> None:
    model = five()
    model[0].register_forward_hook(lambda _, __, output: 2 * output)
    recorder = step(model)
    assert said(recorder)["0"] == ("mul", None, None)
    assert said(recorder)["2"] == ("leaky_relu(negative_slope=0.3)", None, "mul+gelu")


PRODUCTS: dict[str, Callable[[Any, Any], Any]] = {
    "of other weights": lambda fc, x: functional.linear(x, fc.weight * (fc.weight > 0), fc.bias),
    "of another bias": lambda fc, x: functional.linear(x, fc.weight, 2 * fc.bias),
    "scaled": lambda fc, x: 2 * functional.linear(x, fc.weight, fc.bias),
}


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS.keys())
def test_a_layer_that_computes_something_else_is_unknown(product: Callable[[Any, Any], Any]) -> None:
    class Odd(nn.Linear):  # type: ignore[misc]
        def forward(self, inputs: Any) -> Any:
            return product(self, inputs)

    model = five()
    model[0] = Odd(N, WIDTHS[1])
    recorder = step(model)
    assert said(recorder)["0"] == ("unknown", None, None)
    assert recorder.layers["2"].follows is None


def test_tokens_that_become_one_input_do_not_follow() -> None:
    first, second = nn.Linear(N, M), nn.Linear(3 * M, 5)
    model = nn.Sequential(first, nn.Tanh(), nn.Flatten(), second)
    assert said(step(model, torch.randn(B, 3, N)))["3"] == ("none", None, "reshape")


def test_slopes_of_another_axis_are_no_prelu_of_the_units() -> None:
    recorder = step(Pair(lambda z: functional.prelu(z, slopes())), torch.randn(3, M, N))
    assert said(recorder) == {"fc1": ("modified_prelu", None, None), "fc2": ("none", None, "prelu")}


LOSSES: dict[str, tuple[Function, str | None, str | None, str]] = {
    "cross-entropy": (cross_entropy, "cross_entropy", "mean", "none"),
    "summed": (lambda o: F.cross_entropy(o, target(), reduction="sum"), "cross_entropy", "sum", "none"),
    "smoothed": (
        lambda o: F.cross_entropy(o, target(), label_smoothing=0.1),
        "smoothed_cross_entropy",
        "mean",
        "none",
    ),
    "module": (lambda o: nn.CrossEntropyLoss(weight=torch.ones(5))(o, target()), "weighted_cross_entropy", "mean", "none"),
    "log-softmax": (lambda o: F.nll_loss(o.log_softmax(-1), target()), "cross_entropy", "mean", "none"),
    "squares": (lambda o: nn.MSELoss()(o, torch.ones(B, 5)), "mse", "mean", "none"),
    "logits": (
        lambda o: F.binary_cross_entropy_with_logits(o, torch.ones(B, 5), reduction="none").sum(),
        "bce_with_logits",
        None,
        "none",
    ),
    "probabilities": (lambda o: nn.BCELoss()(o.sigmoid(), torch.ones(B, 5)), "bce", "mean", "sigmoid"),
    "two": (lambda o: cross_entropy(o) + F.mse_loss(o, torch.ones(B, 5)), "cross_entropy+mse", "mean", "none"),
    "by hand": (lambda o: o.square().mean(), None, None, "square"),
}  # fmt: skip


def target() -> Any:
    return torch.arange(B) % 5


@pytest.mark.parametrize(("loss", "name", "reduction", "activation"), LOSSES.values(), ids=LOSSES.keys())
def test_the_loss_is_named(
    loss: Function, name: str | None, reduction: str | None, activation: str, tmp_path: Path
) -> None:
    recorder = step(Pair(nn.ReLU()), loss=loss)
    assert said(recorder)["fc2"] == (activation, "fc1", None)
    recorder.write(tmp_path / "seen.h5")
    recorder.write(tmp_path / "given.h5", loss="own", loss_reduction="sum")
    with h5py.File(tmp_path / "seen.h5") as seen, h5py.File(tmp_path / "given.h5") as given_file:
        attributes = dict(seen["records/record-0"].attrs)
        assert (attributes.get("loss"), attributes.get("loss_reduction")) == (name, reduction)
        attributes = dict(given_file["records/record-0"].attrs)
        assert (attributes["loss"], attributes["loss_reduction"]) == ("own", "sum")


def test_a_loss_that_only_looks_is_none() -> None:
    model = five()
    inputs = torch.randn(B, N)
    with record_gradients(model) as recorder:
        logits = model(inputs)
        F.mse_loss(logits, torch.ones(B, 5))  # a figure for the log
        F.cross_entropy(logits, target()).backward()
    assert recorder.info.loss == "cross_entropy"
    assert said(recorder) == FIVE


def test_what_is_in_hand_already_is_looked_at_the_same() -> None:
    model, inputs = five(), torch.randn(B, N)
    model[0].register_forward_hook(lambda _, __, output: output.square().sum() and None)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    cross_entropy(model(inputs)).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    after = {name: p - 0.1 * gradients[name] for name, p in before.items()}
    for update in (
        from_gradients(model, gradients, inputs=inputs),
        from_weights(model, before, after, inputs=inputs),
    ):
        check(update)
        assert said(update) == FIVE
    assert {layer.follows for layer in from_gradients(model, gradients).layers.values()} == {None}


def test_an_activation_that_is_known_better_breaks_the_chain() -> None:
    model, inputs = five(), torch.randn(B, N)
    cross_entropy(model(inputs)).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    known: dict[str, str | Activation] = {"0": "tanh", "4": Activation("gelu")}
    update = from_gradients(model, gradients, inputs=inputs, activations=known)
    assert said(update) == FIVE | {
        "0": ("tanh", None, None),
        "2": ("leaky_relu(negative_slope=0.3)", None, "unknown"),
    }


PIECES: dict[str, Function] = {
    **{name: forms[0] for name, (_, forms) in FORMS.items() if name != "prelu"},
    "relu in place": torch.relu_,
    "prelu of all": lambda z: F.prelu(z, torch.tensor([0.1])),
    "dropout": nn.Dropout(0.4),
    "idle dropout": nn.Dropout(0.4).eval(),
    "norm": nn.LayerNorm(N),
    "softmax": nn.Softmax(-1),
    "add itself": lambda z: z + z.tanh(),
    "scale": lambda z: 1.5 * z,
    "halve in place": lambda z: z.mul_(0.5),
    "flip": lambda z: z.flip(-1),
    "transpose": lambda z: z.transpose(0, 1),
    "fold": lambda z: z.reshape(-1, 4, 4).transpose(1, 2).reshape(z.shape),
    "shape": lambda z: z.reshape(-1, 2, 8).flatten(1).view(z.shape),
    "nothing": lambda z: z[...] + 0,
    "first rows": lambda z: z[:2],
    "last rows": lambda z: z[1:],
    "turned and laid out": lambda z: z.transpose(-1, -2).contiguous().view(-1).reshape(z.shape),
    "twice": lambda z: torch.cat([z, z]),
    "reversal": Reversal.apply,
    "scripted": scripted,
    "a unit away": lambda z: torch.where(torch.arange(N) == 3, 0.0, z),
    "detached twin": lambda z: z + (z.relu() - z).detach(),
    "double": lambda z: z.double().sigmoid().float(),
}


class Random(nn.Module):  # type: ignore[misc]
    """Four square layers, two of them perhaps the same, with anything between them."""

    def __init__(self, pieces: list[list[str]], hooked: bool, twice: bool) -> None:
        super().__init__()
        self.pieces = pieces
        self.layers = nn.ModuleList(nn.Linear(N, N) for _ in pieces)
        if hooked:
            for layer in self.layers:
                layer.register_full_backward_hook(lambda *_: None)
        if twice:
            self.layers[-1] = self.layers[0]

    def forward(self, hidden: Any) -> Any:
        for layer, pieces in zip(self.layers, self.pieces, strict=True):
            hidden = layer(hidden)
            for piece in pieces:
                hidden = PIECES[piece](hidden)
        return hidden


@NO_INPUT_GRADIENT
@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(sorted(PIECES)), max_size=3), min_size=4, max_size=4),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_nothing_is_said_to_follow_that_does_not(
    pieces: list[list[str]], hooked: bool, twice: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    model = Random(pieces, hooked, twice)
    inputs = 3 * torch.randn(3, 5, N)
    try:
        model(inputs).pow(2).mean().backward()
    except RuntimeError:
        reject()  # a change in place that PyTorch forbids
    model.zero_grad()
    with record_gradients(model) as recorder:
        model(inputs).pow(2).mean().backward()
    check(recorder)
    for layer in recorder.layers.values():
        assert layer.follows is None or layer.between is None
        assert as_activation(layer.activation).name
