"""The tables of quality and time: every number is that of result.json, nothing is mixed, nothing is dropped."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_files import write_record

from sq import analysis
from sq.analysis import MissingRuns
from sq.analysis.tables import (
    Table,
    table_bits,
    table_clips,
    table_fp4,
    table_perplexity,
    table_recipes,
    table_time,
    table_zeroshot,
)
from sq.analysis.tables.__main__ import printed
from sq.errors import DataError, SQError
from sq.evaluate.bootstrap import Interval

Write = Callable[..., Path]


def cells(table: Table) -> dict[str, dict[str, Any]]:
    """Cells by row name and column."""
    return {str(row["method"]): row for row in table.frame.to_dict("records")}


def quality(folder: Path, write_run: Write, seed: int = 0) -> dict[tuple[str, str], dict[str, float]]:
    """Runs of four methods with random values by window; returns the metrics of each."""
    random = np.random.default_rng(seed)
    full = random.normal(2.5, 0.3, 32)
    found = {}
    for method, weights in [
        ("fp16", "none"),
        *((name, w) for name in ("rtn", "singlequant", "quarot") for w in ("rtn", "gptq")),
    ]:
        nll = full + (random.exponential(0.1, 32) if weights != "none" else 0)
        kl = list(random.exponential(0.1, 32))
        metrics = {"ppl/embedded": float(np.exp(nll.mean()))}
        write_run(
            folder, method, weights, kl, metrics=metrics, arrays={"nll/embedded": nll, "reference_nll/embedded": full}
        )
        found[method, weights] = {**metrics, "kl/embedded": float(np.mean(kl)), "full": float(np.exp(full.mean()))}
    return found


@pytest.mark.parametrize("seed", range(3))
def test_perplexity_and_kl_are_those_of_result_json(tmp_path: Path, write_run: Write, seed: int) -> None:
    metrics = quality(tmp_path, write_run, seed)
    table = cells(table_perplexity(analysis.load(tmp_path), experiment=None))
    assert table["fp16"]["ppl RTN"] == table["fp16"]["ppl GPTQ"] == metrics["fp16", "none"]["ppl/embedded"]
    for (method, weights), own in metrics.items():
        if weights == "none":
            continue
        row, tail = table[method], weights.upper()
        assert row[f"ppl {tail}"] == own["ppl/embedded"]
        assert row[f"KL {tail}"] == own["kl/embedded"]
        ratio = row[f"ppl / fp16 {tail}"]
        assert ratio.mean == pytest.approx(own["ppl/embedded"] / own["full"], rel=1e-12)
        assert ratio.low < ratio.mean < ratio.high
        assert row[f"KL / singlequant {tail}"].mean == pytest.approx(
            own["kl/embedded"] / metrics["singlequant", weights]["kl/embedded"], rel=1e-12
        )
    assert table["singlequant"]["KL / singlequant RTN"] == Interval(1.0, 1.0, 1.0)


def test_numbers_survive_every_form(tmp_path: Path, write_run: Write) -> None:
    metrics = quality(tmp_path, write_run)
    table = table_perplexity(analysis.load(tmp_path), experiment=None)
    files = table.save(tmp_path / "out", "quality")
    assert [path.name for path in files] == ["quality.md", "quality.tex", "quality.csv"]
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(files[2].read_text()))}
    own = metrics["quarot", "gptq"]
    assert float(rows["quarot"]["KL GPTQ"]) == own["kl/embedded"]  # to the last bit
    assert float(rows["quarot"]["KL / singlequant GPTQ low"]) < float(rows["quarot"]["KL / singlequant GPTQ high"])
    shown = f"{own['kl/embedded']:.4f}"
    assert f"| {shown} |" in files[0].read_text()
    assert f" & {shown} & " in files[1].read_text()


def test_latex_is_booktabs_with_its_characters_escaped() -> None:
    frame = pd.DataFrame([{"method": "a_b & 50%", "KL": 0.25}, {"method": "c", "KL": "failed"}], dtype=object)
    text = Table(frame, "T#1", "x^2", {"KL": "{:.1f}"}, Table(frame.iloc[:1], "others")).latex()
    assert r"a\_b \& 50\% & 0.2 \\" in text
    assert r"\caption{T\#1. x\textasciicircum{}2}" in text
    assert r"\begin{tabular}{lr}" in text
    for command in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{table}", r"\end{table}"):
        assert text.count(command) == 2, command  # ours, and others' apart
    assert text.count("{") == text.count("}")


@pytest.mark.slow
def test_failed_and_missing_runs_say_so(sweep: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["method=rtn,singlequant", "bits=w4a4,w3a3"]
    monkeypatch.setenv("FAKE_FAIL_BITS", "3")
    results = sweep("experiment=table_bits", *small)
    frame = analysis.load(results)
    gone = frame[(frame["method"] == "rtn") & (frame["bits"] == "W4A4KV16")]
    shutil.rmtree(gone.iloc[0]["folder"])
    table = table_bits(analysis.load(results), overrides=small)
    rows = cells(table)
    assert rows["singlequant"] == {"method": "singlequant", "W3A3KV16 GPTQ": "failed", "W4A4KV16 GPTQ": 0.0432}
    assert rows["rtn"] == {"method": "rtn", "W3A3KV16 GPTQ": "failed", "W4A4KV16 GPTQ": "missing"}
    assert "| rtn | failed | missing |" in table.markdown()
    assert "Failed: rtn (W3A3KV16, gptq): RuntimeError: the layer melted; singlequant (W3A3KV16" in table.note
    assert "missing" in table.csv()
    with pytest.raises(MissingRuns, match=r"python run\.py -m experiment=table_bits method=rtn bits=w8a8` makes"):
        table_bits(analysis.load(results), overrides=["method=rtn", "bits=w8a8"])


def test_bits_in_order_and_a_longer_training_in_a_row_of_its_own(tmp_path: Path, write_run: Write) -> None:
    for bits, factor in (("W4A16KV16", 3), ("W4A4KV4", 2), ("W4A4KV16", 1)):
        for weights in ("gptq", "rtn"):
            write_run(tmp_path, "singlequant", weights, [0.04 * factor, 0.06 * factor], bits=bits)
    for epochs, kl in ((20, 0.2), (5, 0.3)):
        write_run(tmp_path, "omniquant", "rtn", [kl], training={"epochs": epochs}, bits="W4A4KV16")
    table = table_bits(analysis.load(tmp_path), experiment=None)
    assert list(table.frame)[1:] == [f"{b} {w}" for b in ("W4A4KV16", "W4A4KV4", "W4A16KV16") for w in ("RTN", "GPTQ")]
    rows = cells(table)
    assert list(rows) == ["omniquant, 5 epochs", "omniquant, 20 epochs", "singlequant"]
    assert [rows[name]["W4A4KV16 RTN"] for name in rows] == [0.3, 0.2, 0.05]
    assert rows["singlequant"]["W4A4KV4 GPTQ"] == 0.1
    with pytest.raises(DataError, match="metric=bleu; allowed: kl, ppl, top1"):
        table_bits(analysis.load(tmp_path), experiment=None, metric="bleu")


MIXES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "task.perplexity.count": ({"config": {"task": {"perplexity": {"count": 64}}}}, {}),
    "task.perplexity.window": (
        {"config": {"task": {"perplexity": {"window": 256}}}}, {"config": {"task": {"perplexity": {"window": 512}}}},
    ),
    "calibration.tokens": ({"config": {"calibration": {"tokens": 256}}}, {}),
    "model.outliers": ({"outliers": "none"}, {}),
    "model.dtype": ({"config": {"model": {"dtype": "float32"}}}, {"config": {"model": {"dtype": "bfloat16"}}}),
    "fingerprint/embedded": ({"extras": {"texts": {"embedded": "a"}}}, {"extras": {"texts": {"embedded": "b"}}}),
    "fingerprint/calibration": ({"extras": {"calibration": "a"}}, {"extras": {"calibration": "b"}}),
    "bits": ({"bits": "W4A4KV4"}, {}),
    "activations": ({"activations": "midrise"}, {}),
    "seed": ({"seed": 1}, {}),
    "weights.group_size": ({"config": {"weights": {"group_size": 128}}}, {"config": {"weights": {"group_size": None}}}),
}  # fmt: skip


@pytest.mark.parametrize("setting", MIXES)
def test_what_differs_is_named_with_its_values_and_can_be_chosen(
    setting: str, tmp_path: Path, write_run: Write
) -> None:
    for method, changes in zip(("quarot", "singlequant"), MIXES[setting], strict=True):
        write_run(tmp_path, method, "rtn", [0.1], metrics={"ppl/embedded": 2.0}, **changes)
    frame = analysis.load(tmp_path)
    with pytest.raises(DataError, match="do not go into one table") as told:
        table_perplexity(frame, experiment=None)
    choice = str(told.value).split(f"choose one ({setting}=")[1].split(")")[0]
    one = cells(table_perplexity(frame, experiment=None, **{setting: choice}))
    assert len(one) == 1


def test_two_settings_of_one_method_are_not_one_cell(tmp_path: Path, write_run: Write) -> None:
    for rank in (0, 16):
        write_run(tmp_path, "singlequant", "rtn", [0.1], training={"rank": rank})
    with pytest.raises(DataError, match=r"method\.rank is 0 or 16|method\.rank is 16 or 0"):
        table_bits(analysis.load(tmp_path), experiment=None)


def test_full_precision_stays_whatever_is_chosen(tmp_path: Path, write_run: Write) -> None:
    quality(tmp_path, write_run)
    write_run(tmp_path, "rtn", "rtn", [0.1], metrics={"ppl/embedded": 3.0}, bits="W4A4KV4")
    table = cells(table_perplexity(analysis.load(tmp_path), experiment=None, bits="w4a4kv4"))
    assert list(table) == ["fp16", "rtn"]


def timed(
    folder: Path, write_run: Write, method: str, seed: int, seconds: float, memory: float, cpu: str = "c"
) -> None:
    parts = {f"quantize/{part}_seconds": seconds / 4 for part in ("capture", "transform", "weights")}
    metrics = {**parts, "quantize/seconds": seconds, "quantize/peak_memory_bytes": memory * 1e6}
    write_run(folder, method, "rtn", [], metrics=metrics, seed=seed, environment={"cpu": cpu})


def test_times_are_medians_and_ratios_to_ours(tmp_path: Path, write_run: Write) -> None:
    for seed, seconds in enumerate((9.0, 2.0, 2.2)):
        timed(tmp_path, write_run, "singlequant", seed, seconds, 500)
        timed(tmp_path, write_run, "spinquant", seed, 100 * seconds, 750)
    write_run(tmp_path, "spinquant", "rtn", [], status="failed", error="diverged", config={"task": {"name": "none"}})
    table = table_time(analysis.load(tmp_path), experiment=None)
    rows = cells(table)
    assert list(rows) == ["singlequant", "spinquant"]
    assert [rows["singlequant"][name] for name in ("runs", "seconds", "ratio")] == [3, 2.2, 1.0]
    assert [rows["spinquant"][name] for name in ("runs", "peak MB", "memory ratio")] == [3, 750.0, 1.5]
    assert rows["spinquant"]["ratio"] == pytest.approx(100)
    assert rows["spinquant"]["transform s"] == pytest.approx(55)
    assert "Failed: spinquant (W4A4KV16, rtn): diverged" in table.note


def test_times_of_two_machines_are_not_mixed(tmp_path: Path, write_run: Write) -> None:
    timed(tmp_path, write_run, "singlequant", 0, 2.0, 500)
    timed(tmp_path, write_run, "quarot", 0, 1.0, 500, cpu="faster")
    with pytest.raises(DataError, match=r"environment\.cpu is"):
        table_time(analysis.load(tmp_path), experiment=None)


def test_accuracy_beside_chance(tmp_path: Path, write_run: Write) -> None:
    task = {"task": {"name": "zeroshot", "zeroshot": {"tasks": ["next_line", "piqa"], "limit": None}}}
    scores = {"acc/next_line": 0.5, "acc/piqa": 0.75, "acc/mean": 0.625, "acc_stderr/piqa": 0.03}
    write_run(tmp_path, "fp16", "none", [], metrics=scores, config=task)
    write_run(tmp_path, "quarot", "gptq", [], metrics={**scores, "acc/mean": 0.6}, config=task)
    write_run(tmp_path, "rtn", "gptq", [], status="failed", error="boom", config=task)
    table = table_zeroshot(analysis.load(tmp_path), experiment=None)
    rows = cells(table)
    assert rows["chance"]["mean"] == (1 / 4 + 1 / 2) / 2
    assert [rows["quarot"][name] for name in ("weights", "next_line", "piqa", "mean")] == ["gptq", 0.5, 0.75, 0.6]
    assert rows["rtn"]["mean"] == "failed"
    assert "| fp16 | - | 50.0% | 75.0% | 62.5% |" in table.markdown()
    assert "up to 3.0%" in table.note


def test_several_models_get_a_column(tmp_path: Path, write_run: Write) -> None:
    for model, kl in (("a", 0.1), ("b", 0.2)):
        for method in ("rtn", "singlequant"):
            write_run(tmp_path, method, "rtn", [kl], model=model)
    table = table_bits(analysis.load(tmp_path), experiment=None)
    assert [tuple(row) for row in table.frame.itertuples(index=False)] == [
        ("a", "rtn", 0.1), ("a", "singlequant", 0.1), ("b", "rtn", 0.2), ("b", "singlequant", 0.2),
    ]  # fmt: skip


@pytest.mark.slow
def test_the_command_prints_a_real_sweep_and_says_what_it_lacks(sweep: Callable[..., Path]) -> None:
    results = sweep("experiment=table_bits", "method=singlequant", "bits=w4a4")
    record = json.loads(next(results.glob("tiny-singlequant-*/result.json")).read_text())
    text = printed(["bits", str(results), "method=rtn,singlequant", "bits=w4a4", "metric=ppl", "format=csv"])
    assert text.splitlines()[1:] == ["rtn,missing", f"singlequant,{record['metrics']['ppl/embedded']}"]
    assert "| singlequant | 0.0432 |" in printed(["bits", str(results), "experiment=none", "weights=gptq"])
    with pytest.raises(SQError, match="allowed: perplexity, zeroshot, time, ablation, bits"):
        printed(["speed", str(results)])
    done = subprocess.run(
        [sys.executable, "-m", "sq.analysis.tables", "time", str(results), "experiment=none"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip().endswith("`python run.py -m experiment=table_time` makes the runs")


def test_clips_stand_side_by_side_and_their_ratio_is_that_of_paired_runs(tmp_path: Path, write_run: Write) -> None:
    random = np.random.default_rng(0)
    kl = {}
    for method, clip in [(method, clip) for method in ("rtn", "quarot") for clip in (1.0, "site")]:
        kl[method, clip] = list(random.exponential(0.1, 32))
        config = {"activations": {"name": "symmetric", "clip": clip}}
        write_run(tmp_path, method, "gptq", kl[method, clip], config=config)
    write_run(tmp_path, "duquant", "gptq", kl["rtn", 1.0], config={"activations": {"name": "symmetric", "clip": 1.0}})
    made = table_clips(analysis.load(tmp_path), experiment=None)
    table = cells(made)
    for method in ("rtn", "quarot"):
        plain, site = (np.mean(kl[method, clip]) for clip in (1.0, "site"))
        assert table[method]["KL GPTQ"] == pytest.approx(plain)
        assert table[method]["KL site GPTQ"] == pytest.approx(site)
        ratio = table[method]["site / without GPTQ"]
        assert isinstance(ratio, Interval)
        assert ratio.mean == pytest.approx(site / plain)
    assert table["duquant"]["KL site GPTQ"] is None, "no such run"
    assert "clip 1, and with one clip a site" in str(made)


def test_fp4_shows_each_format_over_plain_rounding_in_it(tmp_path: Path, write_run: Write) -> None:
    random = np.random.default_rng(0)
    kl, cost = {}, {"MXFP4KV16": 32.0, "NVFP4KV16": 16.0}
    for method in ("rtn", "mrgptq"):
        for bits in cost:
            for weights in ("rtn", "gptq"):
                kl[method, bits, weights] = list(random.exponential(0.1, 32))
                write_run(tmp_path, method, weights, kl[method, bits, weights], bits=bits)
    # A rotation inside the group costs as many as the group has.
    for file in tmp_path.glob("tiny-mrgptq-*/result.json"):
        record = json.loads(file.read_text())
        record["metrics"]["transform/multiply_adds"] = cost[record["bits"]]
        write_record(file.parent, record)
    table = table_fp4(analysis.load(tmp_path), experiment=None)
    row = cells(table)["mrgptq"]
    for bits in cost:
        for weights in ("rtn", "gptq"):
            own, base = (np.mean(kl[method, bits, weights]) for method in ("mrgptq", "rtn"))
            assert row[f"{bits} {weights.upper()}"] == pytest.approx(own)
            assert row[f"/ rtn {bits} {weights.upper()}"].mean == pytest.approx(own / base)
        assert row[f"online MAC/token {bits}"] == cost[bits]
    with pytest.raises(MissingRuns, match="ppl"):
        table_fp4(analysis.load(tmp_path), experiment=None, metric="ppl")


def test_published_recipes_stand_above_the_shared_one_with_their_quantizers(tmp_path: Path, write_run: Write) -> None:
    random = np.random.default_rng(0)
    shared = {"activations": {"scheme": "symmetric", "clip": 1.0}, "weights": {"scheme": "symmetric", "clip": "search"}}
    own = {
        "activations": {"scheme": "asymmetric", "clip": 0.9, "o_group": "head"},
        "weights": {"scheme": "asymmetric", "clip": 0.8},
    }
    kl = {name: list(random.exponential(0.1, 32)) for name in ("duquant_published", "duquant", "singlequant")}
    for name, values in kl.items():
        theirs = name.endswith("_published")
        write_run(
            tmp_path, name, "rtn", values, config=own if theirs else shared,
            activations="asymmetric" if theirs else "symmetric",
        )  # fmt: skip
    table = cells(table_recipes(analysis.load(tmp_path), experiment=None))
    assert table["duquant_published"]["weights"] == "asymmetric, clip 0.8"
    assert table["duquant_published"]["activations"] == "asymmetric, clip 0.9, by head at o"
    assert table["duquant"]["activations"] == "symmetric, clip 1"
    for name, values in kl.items():
        assert table[name]["KL RTN"] == pytest.approx(np.mean(values))
        ratio = table[name]["KL / singlequant RTN"]
        assert ratio.mean == pytest.approx(np.mean(values) / np.mean(kl["singlequant"]))


@pytest.mark.slow
def test_runs_of_the_shared_recipe_come_from_the_other_experiment(sweep: Callable[..., Path]) -> None:
    results = sweep("experiment=table_recipes", "published=quarot", "weights=rtn")
    frame = analysis.load(results)
    with pytest.raises(MissingRuns, match="experiment=table_perplexity weights=rtn"):
        table_recipes(frame[frame["method"] != "fp16"], overrides=["weights=rtn"])
    sweep("experiment=table_perplexity", "method=quarot", "weights=rtn")
    rows = cells(table_recipes(analysis.load(results), overrides=["weights=rtn"]))
    assert rows["quarot_published"]["KL RTN"] == rows["quarot"]["KL RTN"] == 0.0432
    assert rows["duquant_published"]["KL RTN"] == rows["duquant"]["KL RTN"] == "missing"
