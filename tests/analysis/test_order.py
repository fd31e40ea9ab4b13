"""The order of bit labels in a table, and whose KV cache settings count."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from sq import analysis
from sq.analysis.tables import table_bits, table_perplexity
from sq.analysis.tables.order import in_order
from sq.errors import DataError, QuantizationError

INTEGERS = ["W3A3KV16", "W4A4KV16", "W4A4KV4", "W4A4K4V8", "W4A4Q4KV4", "W4A8KV8", "W4A16KV16", "W8A8KV16", "W16A16KV4"]
MIXED = [
    "W3A3KV16", "W4A4KV16", "MXFP4KV16", "NVFP4KV16", "NVFP4KVFP8", "W4A4KV4", "W4A4K4V8", "W4A8KV16",
    "WMXFP4AMXFP8KV16", "WNVFP4AFP8KV4", "W16A16KV16",
]  # fmt: skip


@pytest.mark.parametrize("labels", [INTEGERS, MIXED], ids=["integers", "named formats"])
def test_fewer_bits_come_first_and_the_cache_is_the_other_way_round(labels: list[str]) -> None:
    for seed in range(5):
        assert in_order(random.Random(seed).sample(labels, len(labels))) == labels


def test_an_unknown_format_is_an_error() -> None:
    with pytest.raises(QuantizationError, match="nvfp5"):
        in_order(["W4A4KV16", "NVFP5KV16"])


def test_named_formats_stand_in_the_columns_of_a_table(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    for bits, kl in (("WNVFP4AFP8KV4", 0.3), ("NVFP4KV16", 0.2), ("W4A4KV16", 0.1), ("W4A4K4V8", 0.4)):
        write_run(tmp_path, "rtn", "rtn", [kl], bits=bits)
    table = table_bits(analysis.load(tmp_path), experiment=None)
    assert list(table.frame.iloc[0]) == ["rtn", 0.1, 0.2, 0.4, 0.3]
    assert list(table.frame)[1:] == ["W4A4KV16 RTN", "NVFP4KV16 RTN", "W4A4K4V8 RTN", "WNVFP4AFP8KV4 RTN"]


@pytest.mark.parametrize(("bits", "matters"), [("NVFP4KV16", False), ("W4A4KV16", False), ("NVFP4KV4", True)])
def test_settings_of_the_cache_count_only_where_it_is_rounded(
    bits: str, matters: bool, tmp_path: Path, write_run: Callable[..., Path]
) -> None:
    for method, clip in (("rtn", 1.0), ("quarot", 0.9)):
        cache = {"kv_cache": {"name": "asymmetric", "clip": clip}}
        write_run(tmp_path, method, "rtn", [0.1], bits=bits, config=cache, metrics={"ppl/embedded": 2.0})
    frame = analysis.load(tmp_path)
    if matters:
        with pytest.raises(DataError, match=r"kv_cache\.clip is"):
            table_perplexity(frame, experiment=None)
    else:
        assert len(table_perplexity(frame, experiment=None).frame) == 2
