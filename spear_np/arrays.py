"""What an array is to the solver and its callers: what NumPy, CuPy and the array API standard have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy.typing as npt


class Array(Protocol):
    """An array of NumPy, CuPy or another library that follows the array API standard.

    It lies where it was computed: `numpy.asarray` makes a NumPy array of one on the host, and CuPy refuses to copy one from
    a GPU unasked: ``array.get()`` does.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        ...

    @property
    def ndim(self) -> int:
        """Number of axes."""
        ...

    @property
    def size(self) -> int:
        """Number of entries."""
        ...

    @property
    def dtype(self) -> Any:
        """Type of one entry, as its library names it."""
        ...

    @property
    def device(self) -> Any:
        """Where it lies, as its library names it."""
        ...

    @property
    def T(self) -> Array:
        """A matrix with rows and columns exchanged."""
        ...

    def __array__(self) -> npt.NDArray[Any]: ...
    def __getitem__(self, key: Any, /) -> Array: ...
    def __setitem__(self, key: Any, value: Any, /) -> None: ...
    def __bool__(self) -> bool: ...
    def __int__(self) -> int: ...
    def __float__(self) -> float: ...
    def __index__(self) -> int: ...
    def __neg__(self) -> Array: ...
    def __abs__(self) -> Array: ...
    def __invert__(self) -> Array: ...
    def __add__(self, other: Any, /) -> Array: ...
    def __radd__(self, other: Any, /) -> Array: ...
    def __sub__(self, other: Any, /) -> Array: ...
    def __rsub__(self, other: Any, /) -> Array: ...
    def __mul__(self, other: Any, /) -> Array: ...
    def __rmul__(self, other: Any, /) -> Array: ...
    def __truediv__(self, other: Any, /) -> Array: ...
    def __rtruediv__(self, other: Any, /) -> Array: ...
    def __floordiv__(self, other: Any, /) -> Array: ...
    def __mod__(self, other: Any, /) -> Array: ...
    def __pow__(self, other: Any, /) -> Array: ...
    def __matmul__(self, other: Any, /) -> Array: ...
    def __rmatmul__(self, other: Any, /) -> Array: ...
    def __and__(self, other: Any, /) -> Array: ...
    def __or__(self, other: Any, /) -> Array: ...
    def __xor__(self, other: Any, /) -> Array: ...
    def __lshift__(self, other: Any, /) -> Array: ...
    def __rshift__(self, other: Any, /) -> Array: ...
    def __lt__(self, other: Any, /) -> Array: ...
    def __le__(self, other: Any, /) -> Array: ...
    def __gt__(self, other: Any, /) -> Array: ...
    def __ge__(self, other: Any, /) -> Array: ...
    def __eq__(self, other: Any, /) -> Array: ...  # type: ignore[override]
    def __ne__(self, other: Any, /) -> Array: ...  # type: ignore[override]


HostArray: TypeAlias = npt.NDArray[Any]
"""A NumPy array, on the host."""


@runtime_checkable
class Sliceable(Protocol):
    """Numbers that are read where they are sliced: an array of any library, an h5py dataset, a wrapper of one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        ...

    @property
    def dtype(self) -> Any:
        """Type of one entry."""
        ...

    def __getitem__(self, key: Any, /) -> Any:
        """Read a block: an array of whatever library."""
        ...


class Eigh(NamedTuple):
    """What `eigh` returns: eigenvalues, ascending, and eigenvectors as columns."""

    eigenvalues: Array
    eigenvectors: Array


class QR(NamedTuple):
    """What `qr` returns."""

    Q: Array
    R: Array


class SVD(NamedTuple):
    """What `svd` returns."""

    U: Array
    S: Array
    Vh: Array


class LinearAlgebra(Protocol):
    """Extension `linalg` of the array API standard; what is not named here returns one array."""

    def eigh(self, x: Array, /) -> Eigh:
        """Eigenvalues and eigenvectors of symmetric matrices."""
        ...

    def qr(self, x: Array, /, *, mode: Literal["reduced", "complete"] = "reduced") -> QR:
        """Orthonormal columns, and the triangular factor that makes `x` of them."""
        ...

    def slogdet(self, x: Array, /) -> tuple[Array, Array]:
        """Sign and logarithm of the size of determinants."""
        ...

    def svd(self, x: Array, /, *, full_matrices: bool = True) -> SVD:
        """Singular values, largest first, and the vectors that belong to them."""
        ...

    def __getattr__(self, name: str) -> Callable[..., Array]: ...


class Namespace(Protocol):
    """Functions and dtypes of one library under the names of the array API standard; what is not named here returns one array."""

    bool: Any
    int8: Any
    int32: Any
    int64: Any
    uint64: Any
    float32: Any
    float64: Any
    linalg: LinearAlgebra

    def nonzero(self, x: Array, /) -> tuple[Array, ...]:
        """Positions of what is not zero, an array for each axis."""
        ...

    def __getattr__(self, name: str) -> Callable[..., Array]: ...
