"""Published numbers: a block of their own, and the check of runs of published settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sq import analysis
from sq.analysis import check_published
from sq.analysis.published import SETTING, load_published
from sq.analysis.published.check import ACCURACY_FLOOR, PERPLEXITY_FLOOR
from sq.analysis.tables import table_bits, table_perplexity, table_time, table_zeroshot
from sq.config.parse import options

PUBLISHED = {
    "task": {"name": "all", "perplexity": {"window": 2048, "count": None}, "zeroshot": {"tasks": list("abcdef")}}
}


def run(write_run: Callable[..., Path], folder: Path, ppl: float, **fields: Any) -> None:
    config = {**PUBLISHED, **fields.pop("config", {})}
    own = {"model": "llama2_7b", "bits": "W4A4KV4", **fields}
    write_run(folder, own.pop("method", "quarot"), "gptq", [], metrics={"ppl/wikitext2": ppl}, config=config, **own)


def test_every_row_names_its_source_and_uses_our_names() -> None:
    frame = load_published()
    assert len(frame) > 500
    assert (frame["source"] != "").all()
    assert set(frame["weights"]) == {"", "none", "rtn", "gptq"}
    assert {"fp16", "rtn", "smoothquant", "quarot", "duquant", "omniquant", "flatquant", "spinquant"} <= set(
        frame["method"]
    )
    assert {"llama2_7b", "llama2_13b", "llama2_70b", "llama3_8b"} <= set(frame["model"]) & set(options("model"))
    labelled = frame[frame["kv"] != ""]
    assert all(bits.endswith(f"KV{kv}") for bits, kv in zip(labelled["bits"], labelled["kv"], strict=True))
    assert (frame.loc[frame["metric"] == "acc/mean", "protocol"].str.fullmatch(r"\d tasks")).all()
    row = frame[(frame["model"] == "llama2_7b") & (frame["method"] == "flatquant") & (frame["weights"] == "gptq")]
    assert next(iter(row.loc[(row["metric"] == "ppl/wikitext2") & (row["bits"] == "W4A4KV4"), "printed"])) == "5.78"


def test_floors_are_the_median_spread_of_several_sources() -> None:
    frame = load_published()
    groups = frame[frame["method"] != "fp16"].groupby(SETTING)
    several = groups["value"].agg(["min", "max", "median"])[groups["origin"].nunique() > 1]
    spread = several["max"] - several["min"]
    metric = several.index.get_level_values("metric")
    perplexity = (spread / several["median"])[metric.str.startswith("ppl/")].median()
    assert perplexity == pytest.approx(PERPLEXITY_FLOOR, rel=0.1)
    assert spread[metric == "acc/mean"].median() == pytest.approx(ACCURACY_FLOOR, rel=0.1)


@pytest.mark.parametrize(("ppl", "differs"), [(6.10, "no"), (6.60, "yes"), (5.90, "yes")], ids=str)
def test_a_run_differs_when_it_is_off_by_more_than_the_sources_are(
    ppl: float, differs: str, tmp_path: Path, write_run: Callable[..., Path]
) -> None:
    """QuaRot with GPTQ on Llama-2-7B at W4A4KV4: 6.10, 6.27 and 6.4 in three repositories."""
    run(write_run, tmp_path, ppl)
    table = check_published(analysis.load(tmp_path))
    (row,) = table.frame.to_dict("records")
    printed = load_published()
    same = printed[(printed["model"] == "llama2_7b") & (printed["method"] == "quarot") & (printed["weights"] == "gptq")]
    values = same.loc[(same["bits"] == "W4A4KV4") & (same["metric"] == "ppl/wikitext2"), "value"]
    assert row["spread"] == pytest.approx(values.max() - values.min())
    assert row["published"] == values.median()
    assert row["differs"] == differs
    assert table.note.startswith(f"{int(differs == 'yes')} of 1 differ")


@pytest.mark.parametrize(
    "other",
    [
        {"bits": "W4A4KV8"},
        {"method": "nobody"},
        {"activations": "midrise"},
        {"model": "tiny"},
        {"config": {"task": {"perplexity": {"window": 2048, "count": 64}}}},
        {"status": "failed", "error": "boom"},
    ],
    ids=str,
)
def test_other_settings_are_compared_with_nothing_and_it_says_so(
    other: dict[str, Any], tmp_path: Path, write_run: Callable[..., Path]
) -> None:
    run(write_run, tmp_path, 6.1, **other)
    table = check_published(analysis.load(tmp_path))
    assert table.frame.empty
    assert table.note.startswith("No run of a published setting is here")
    assert "No run of a published setting" in table.markdown()


def test_every_table_shows_them_apart(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    write_run(tmp_path, "rtn", "rtn", [0.1], metrics={"ppl/embedded": 2.0})
    frame = analysis.load(tmp_path)
    for make in (table_perplexity, table_bits):
        table = make(frame, experiment=None, published=True)
        assert table.published is not None
        assert "6.1" not in make(frame, experiment=None).markdown()
        ours, theirs = table.markdown().split("**Published by others, not measured here**")
        assert "quarot" not in ours
        block = table.published.frame.set_index(["method", "weights"])
        # Two sources, SpinQuant's and DFRot's READMEs, print 6.1 and 6.20 for it; FlatQuant's prints KV4 alone.
        assert block.loc[("quarot", "gptq"), "llama2_7b ppl/wikitext2"] == "6.1-6.20 (2)"
        assert set(block["bits"]) == {"W4A4KV16", "W16A16KV16"}
        assert "JingyangXiang/DFRot" in theirs
        names = [path.name for path in table.save(tmp_path / "out", "t")]
        assert names[-1] == "t_published.csv"


def test_time_and_accuracy_show_theirs(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    write_run(tmp_path, "singlequant", "rtn", [], metrics=dict.fromkeys(TIMES, 1.0))
    timed = table_time(analysis.load(tmp_path), experiment=None, published=True).published
    assert timed is not None
    assert "dfrot" in set(timed.frame["method"])
    task = {"task": {"zeroshot": {"tasks": ["piqa"]}}}
    write_run(tmp_path / "acc", "quarot", "gptq", [], metrics={"acc/piqa": 0.5, "acc/mean": 0.5}, config=task)
    accuracy = table_zeroshot(analysis.load(tmp_path / "acc"), experiment=None, published=True).published
    assert accuracy is not None
    assert {"llama2_7b acc/mean 6 tasks", "llama2_7b acc/mean 8 tasks"} <= set(accuracy.frame)
    assert pd.notna(accuracy.frame["llama2_7b acc/mean 6 tasks"]).any()


TIMES = (
    "quantize/seconds",
    "quantize/peak_memory_bytes",
    *(f"quantize/{part}_seconds" for part in ("capture", "transform", "weights")),
)
