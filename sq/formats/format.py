"""A number format as data: what its codes stand for, which entries share a scale, and how scales are stored.

Nothing here imports torch: labels such as bits=nvfp4 are read and checked before anything heavy is loaded. To add a
format, `register` it in a file of its own and import that in sq/formats/catalog.py (docs/extend.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from sq.errors import QuantizationError
from sq.formats.elements import Element, FullRange, GridName, Integers
from sq.formats.scales import FLOAT32_SCALE, ScaleType
from sq.kernels.schemes import Scheme


@dataclass(frozen=True)
class Format:
    """What a number becomes.

    Value of a code q with zero point z: s S level(q, z), s the scale it shares with its neighbours and S the second
    scale, 1 where there is none.

    Attributes:
        name: as in labels and messages.
        element: which levels the codes stand for, in units of the scale.
        group: neighbouring entries of a row that share a scale; None = the whole row, that is one scale for each output
            channel of a weight, each token of activations, each head of a token inside attention.
        scale: how a scale is stored; scales are rounded to it when they are made.
        second: a float32 scale on top of the others, one for a weight and one for each token of activations. It brings
            the largest scale to the end of the scale type's range.
        static: the second scale belongs to a site: one for all its linears, which engines join, and one for its
            activations, from calibration tokens, so that it costs nothing at run time.
        tensor: one scale for a whole weight. Activations do not take it: a token would depend on its batch.
        spans: factors on the range that encoding chooses from by squared error, for each scale; (1, 1.5) maps the
            largest entry of a group to 6 or to 4 in NVFP4 ("four over six").

    Raises:
        QuantizationError: a group below 1, or groups in a format with one scale for a whole tensor.
    """

    name: str
    element: Element
    group: int | None = None
    scale: ScaleType = FLOAT32_SCALE
    second: bool = False
    static: bool = False
    tensor: bool = False
    spans: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.group is not None and (self.group < 1 or self.tensor):
            given = f"format {self.name} has group={self.group}, tensor={self.tensor}"
            raise QuantizationError(f"{given}; use a group of at least 1, or None")

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.element.bits

    @property
    def scheme(self) -> Scheme | None:
        """Of integers on a grid that kernels know; None for other elements. Kernels ask for it."""
        return self.element.kernel_scheme

    @property
    def grid(self) -> GridName | None:
        """Of integers, kernels or not; None for other elements."""
        return self.element.grid if isinstance(self.element, Integers) else None

    @property
    def include_zero(self) -> bool:
        """Whether an asymmetric range is widened to hold 0: as in the peers, that of a whole row is, a group's not."""
        return self.group is None

    def groups(self, n: int) -> int:
        """Scales of a row of n entries; QuantizationError where the group does not divide n."""
        if self.group is None:
            return 1
        if n % self.group:
            groups = f"format {self.name} has groups of {self.group}"
            raise QuantizationError(f"{groups}, which do not divide {n} features; use a divisor")
        return n // self.group

    def counted_bits(self, rows: int, n: int) -> int:
        """Bits of a tensor of so many rows of n entries: codes, scales and zero points, see `ScaleType.counted`."""
        scales = 1 if self.tensor else rows * self.groups(n)
        each = self.scale.counted + (16 if self.element.has_zero else 0)
        return rows * n * self.bits + scales * each + (32 if self.second else 0)


def integer(bits: int, scheme: GridName = "symmetric", group: int | None = None) -> Format:
    """The integer format of 2 to 8 bits with float32 scales, one a row or one for each group."""
    name = f"int{bits}" + ("" if group is None else f"g{group}")
    if scheme == "full_range":
        return Format(f"{name} {scheme}", FullRange(bits), group)
    return Format(name, Integers(bits, scheme), group)


_registry: dict[str, Format] = {}


def register(format: Format) -> Format:
    """Make a format known by its name, in labels (bits=w<name>a<name>) and in files.

    Raises:
        QuantizationError: the name is taken, or is not lower-case letters, digits and "_", beginning with a letter.
    """
    name = format.name
    if not (name.isascii() and name.replace("_", "").isalnum() and name[:1].isalpha() and name == name.lower()):
        raise QuantizationError(f"format name {name!r}: use lower-case letters, digits and _, beginning with a letter")
    if _registry.setdefault(name, format) != format:
        raise QuantizationError(f"a format named {name!r} is registered already, with other contents")
    return format


def named(name: str) -> Format:
    """The registered format of a name; QuantizationError where there is none."""
    if name not in _registry:
        raise QuantizationError(f"format {name!r} is unknown; there are {', '.join(names())}")
    return _registry[name]


def names() -> list[str]:
    """Names of all registered formats, sorted."""
    return sorted(_registry)
