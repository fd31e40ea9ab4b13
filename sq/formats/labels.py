"""Labels of bits: w4a4, w4a4kv4, w4a4q4kv4, nvfp4, wnvfp4afp8, wmxfp4amxfp8kv4, parsed once."""

from __future__ import annotations

import re
from dataclasses import dataclass

import sq.formats.catalog  # noqa: F401  (registers the formats)
from sq.errors import QuantizationError
from sq.formats.elements import MAX_BITS, MIN_BITS, GridName
from sq.formats.format import Format, integer, named, names

SIXTEEN = "16"  # a part that is left in 16 bits
_SHAPE = "w<format>a<format>, then q<format> and kv<format> if wanted, or one format for weights and activations"


@dataclass(frozen=True)
class Bits:
    """The format of each part of a model, by name: "2" to "8" for integers, "16" for none, or a registered format.

    Attributes:
        weights, activations: of the linears.
        keys, values: of the KV cache, after RoPE.
        queries: of what meets the keys.
    """

    weights: str = SIXTEEN
    activations: str = SIXTEEN
    keys: str = SIXTEEN
    values: str = SIXTEEN
    queries: str = SIXTEEN

    @property
    def label(self) -> str:
        """ "W4A4KV16", "NVFP4KV16", "WNVFP4AFP8KV4"; "W4A4K4V8" where the two differ, "W4A4Q4KV4" with queries."""
        linears = f"W{self.weights}A{self.activations}"
        if self.weights == self.activations and not self.weights.isdigit():
            linears = self.weights
        queries = "" if self.queries == SIXTEEN else f"Q{self.queries}"
        cache = f"KV{self.keys}" if self.keys == self.values else f"K{self.keys}V{self.values}"
        return f"{linears}{queries}{cache}".upper()

    @property
    def short(self) -> str:
        """ "w4a4", "nvfp4", "w4a4kv4": the label in lower case, without keys and values where both stay in 16 bits."""
        return self.label.removesuffix(f"KV{SIXTEEN}").lower()

    @property
    def packs(self) -> bool:
        """Whether weights get codes, which is what packed layers are made of."""
        return self.weights != SIXTEEN

    @property
    def quantizes_attention(self) -> bool:
        """Whether queries, keys or values are quantized."""
        return {self.queries, self.keys, self.values} != {SIXTEEN}


FULL_PRECISION = Bits()


def parse_bits(label: str) -> Bits:
    """The bits that a label stands for; parts that it leaves out stay in 16 bits.

    Raises:
        QuantizationError: another form, or a format that does not exist; the message says which part is wrong.
    """
    return Bits(**parse_parts(label))


def parse_parts(label: str) -> dict[str, str]:
    """Format by field of `Bits`, of the parts that a label names.

    Raises:
        QuantizationError: as `parse_bits`.
    """
    text = str(label).lower()
    found = _pattern("|".join([*_known(), SIXTEEN])).fullmatch(text)
    if found is None:
        raise QuantizationError(_mistake(text))
    part = found.groupdict()
    parts = {
        "weights": part["w"] or part["both"],
        "activations": part["a"] or part["both"],
        "keys": part["k"] or part["kv"],
        "values": part["v"] or part["kv"],
        "queries": part["q"],
    }
    return {name: format for name, format in parts.items() if format}


def format_of(part: str, scheme: GridName = "symmetric", group: int | None = None) -> Format | None:
    """The format of one part of `Bits`, None for 16 bits.

    Args:
        part: "4" for an integer of the given scheme and group, or the name of a format, which has its own.

    Raises:
        QuantizationError: an unknown name, or a scheme or group beside a format that has its own.
    """
    if part == SIXTEEN:
        return None
    if part.isdigit():
        return integer(int(part), scheme, group)
    found = named(part)
    if scheme != "symmetric" or group is not None:
        raise QuantizationError(
            f"{part} has its own levels and groups: scheme={scheme}, group_size={group} do not go with it; use "
            "scheme=symmetric and group_size=null"
        )
    return found


def _known() -> list[str]:
    """Longest first, so that a name is not taken for the beginning of another."""
    return [*sorted(names(), key=len, reverse=True), *(str(bits) for bits in range(MIN_BITS, MAX_BITS + 1))]


def _pattern(one: str) -> re.Pattern[str]:
    alone = "|".join(name for name in one.split("|") if not name.isdigit()) or "(?!)"
    return re.compile(
        rf"(?:w(?P<w>{one})a(?P<a>{one})|(?P<both>{alone}))(?:q(?P<q>{one}))?(?:kv(?P<kv>{one})|k(?P<k>{one})v(?P<v>{one}))?"
    )


def _mistake(text: str) -> str:
    allowed = f"{MIN_BITS} to {MAX_BITS} or 16 for integers, or one of {', '.join(names())}"
    loose = re.fullmatch(r"(?:w(?P<w>.+?)a(?P<a>.+?)|(?P<both>[^w].*?))(?:q(?P<q>[^kv]+))?(?:kv(?P<kv>[^kv]+))?", text)
    known = {*_known(), SIXTEEN}
    words = {
        "w": "weights",
        "a": "activations",
        "both": "weights and activations",
        "q": "queries",
        "kv": "keys and values",
    }
    wrong = []
    if loose is not None:
        wrong = [f"{words[key]} {found!r}" for key, found in loose.groupdict().items() if found and found not in known]
    if not wrong:
        return f"bits={text} is not a label; write {_SHAPE}; formats: {allowed}"
    return f"bits={text}: {', '.join(wrong)} is no format; allowed: {allowed}. Labels: {_SHAPE}"
