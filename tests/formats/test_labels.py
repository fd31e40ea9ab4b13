"""Labels of bits: what they stand for, how they print, and which part of a wrong one is named."""

from __future__ import annotations

import pytest

from sq.errors import QuantizationError
from sq.formats.catalog import NVFP4
from sq.formats.format import integer, names
from sq.formats.labels import Bits, format_of, parse_bits

CASES = {
    "w4a4": (Bits("4", "4"), "W4A4KV16"),
    "w4a4kv4": (Bits("4", "4", "4", "4"), "W4A4KV4"),
    "w4a4q4kv4": (Bits("4", "4", "4", "4", "4"), "W4A4Q4KV4"),
    "w3a3": (Bits("3", "3"), "W3A3KV16"),
    "w4a16": (Bits("4", "16"), "W4A16KV16"),
    "w4a4k4v8": (Bits("4", "4", "4", "8"), "W4A4K4V8"),
    "mxfp4": (Bits("mxfp4", "mxfp4"), "MXFP4KV16"),
    "nvfp4": (Bits("nvfp4", "nvfp4"), "NVFP4KV16"),
    "nvfp4kv4": (Bits("nvfp4", "nvfp4", "4", "4"), "NVFP4KV4"),
    "wnvfp4afp8": (Bits("nvfp4", "fp8"), "WNVFP4AFP8KV16"),
    "wmxfp4amxfp8kv4": (Bits("mxfp4", "mxfp8", "4", "4"), "WMXFP4AMXFP8KV4"),
    "wint4g32a8": (Bits("int4g32", "8"), "WINT4G32A8KV16"),
    "nvfp4_46": (Bits("nvfp4_46", "nvfp4_46"), "NVFP4_46KV16"),
}


@pytest.mark.parametrize("label", CASES)
def test_a_label_stands_for_its_parts_and_prints_with_its_kv_part(label: str) -> None:
    bits, printed = CASES[label]
    assert parse_bits(label) == bits
    assert bits.label == printed
    assert parse_bits(printed) == bits


@pytest.mark.parametrize("part", ["weights", "activations"])
@pytest.mark.parametrize("name", names())
def test_every_registered_format_is_a_label(name: str, part: str) -> None:
    assert parse_bits(name) == Bits(name, name)
    assert getattr(parse_bits(f"w{name}a{name}kv8"), part) == name


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("w4a9", "activations '9' is no format"),
        ("w1a4", "weights '1' is no format"),
        ("wnvfp5a4", "weights 'nvfp5' is no format"),
        ("w4a4kv3x", "keys and values '3x' is no format"),
        ("fp6", "weights and activations 'fp6' is no format"),
        ("4", "is not a label"),
        ("w4", "is not a label"),
        ("", "is not a label"),
    ],
)
def test_a_wrong_label_names_the_part_and_what_exists(label: str, words: str) -> None:
    with pytest.raises(QuantizationError, match="mxfp4") as caught:
        parse_bits(label)
    assert words in str(caught.value)
    assert "2 to 8" in str(caught.value)


def test_integers_take_the_schemes_and_groups_of_a_run_and_named_formats_do_not() -> None:
    assert format_of("16") is None
    assert format_of("4", "midrise", 32) == integer(4, "midrise", 32)
    assert format_of("nvfp4") is NVFP4
    with pytest.raises(QuantizationError, match="nvfp4 has its own levels and groups"):
        format_of("nvfp4", "midrise")
    with pytest.raises(QuantizationError, match="group_size=32"):
        format_of("nvfp4", "symmetric", 32)
