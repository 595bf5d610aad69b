"""Every kernel compiles for every kind of card that is in use, by each version of NVRTC that is installed."""

from __future__ import annotations

import pytest

from spear_np.kernels.source import kernel_names, source
from tests.nvrtc import Nvrtc, compilers

ARCHITECTURES = {70: "V100", 80: "A100", 90: "H100", 100: "B200", 120: "RTX 50"}
COMPILERS = compilers()
needs_nvrtc = pytest.mark.skipif(
    not COMPILERS, reason="no NVRTC is installed: pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-nvrtc"
)


@pytest.fixture(params=COMPILERS, ids=lambda compiler: "CUDA {}.{}".format(*compiler.version))
def compiler(request: pytest.FixtureRequest) -> Nvrtc:
    chosen: Nvrtc = request.param
    return chosen


@needs_nvrtc
def test_each_architecture_has_a_compiler() -> None:
    known = {architecture for compiler in COMPILERS for architecture in compiler.architectures}
    assert set(ARCHITECTURES) <= known


@needs_nvrtc
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=ARCHITECTURES.get)
def test_the_kernels_compile_without_a_warning(compiler: Nvrtc, architecture: int) -> None:
    if architecture not in compiler.architectures:
        pytest.skip("CUDA {}.{} no longer knows this card".format(*compiler.version))
    code, log = compiler.compile(source(), architecture)
    assert "kernels.cu" not in log  # what it says of the source; of old cards it warns besides
    assert code.startswith(b"\x7fELF")
    for name in kernel_names():
        assert f".text.{name}\0".encode() in code


@needs_nvrtc
def test_what_is_no_cuda_is_refused(compiler: Nvrtc) -> None:
    with pytest.raises(ValueError, match='identifier "lanes" is undefined'):
        compiler.compile(source().replace("int lane = threadIdx.x", "int lane = lanes"), 90)
