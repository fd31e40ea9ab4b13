"""What a run measured reaches the model card of its packed folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from sq.checkpoint.card import Score
from sq.config.compose import compose
from sq.data.windows import Windows
from sq.models.licence import licence_of
from sq.runs.card_scores import card_scores, how_measured
from sq.runs.execute import execute


def test_values_are_the_metrics_and_intervals_hold_them() -> None:
    draw = np.random.default_rng(0)
    arrays = {f"{name}/t": draw.gamma(4.0, 0.5, 4000) for name in ("nll", "reference_nll", "kl", "top1")}
    means = {name: float(values.mean()) for name, values in arrays.items()}
    metrics = {"ppl/t": float(np.exp(means["nll/t"])), "kl/t": means["kl/t"], "top1/t": means["top1/t"], "acc/a": 0.5}
    metrics |= {"acc_stderr/a": 0.1, "model/bytes": 5.0}
    found = {score.metric: score for score in card_scores(metrics, arrays)}
    assert set(found) == {"ppl", "kl", "top1", "acc"}
    assert found["acc"] == Score("acc", "a", 0.5, pytest.approx(0.304), pytest.approx(0.696))  # type: ignore[arg-type]
    assert found["ppl"].full == pytest.approx(np.exp(means["reference_nll/t"]))
    # The normal interval of a mean of so many draws, which a bootstrap comes near.
    half = 1.96 * arrays["kl/t"].std() / 4000**0.5
    assert found["kl"].low == pytest.approx(means["kl/t"] - half, abs=half / 5)
    assert found["kl"].high == pytest.approx(means["kl/t"] + half, abs=half / 5)
    half = 1.96 * arrays["nll/t"].std() / 4000**0.5
    assert np.log(found["ppl"].high) == pytest.approx(means["nll/t"] + half, abs=half / 5)


def test_the_note_counts_windows() -> None:
    assert how_measured([]) == ""
    assert "3 windows of 8 tokens of t" in how_measured([Windows(torch.zeros(3, 8, dtype=torch.int64), "t", "")])


@pytest.mark.slow
def test_a_run_that_saves_writes_its_numbers_into_the_card(tmp_path: Path) -> None:
    words = [f"paths.cache={tmp_path / 'cache'}", f"save_to={tmp_path / 'packed'}", "tracker=none", "method=rtn"]
    done = execute(compose([*words, "calibration=single_sample", "task.perplexity.count=2"]), None)
    text = (tmp_path / "packed" / "README.md").read_text()
    row = re.search(r"\| perplexity \| embedded \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \| ([\d.]+) \|", text)
    assert row is not None
    value, low, high, full = map(float, row.groups())
    assert value == pytest.approx(done.metrics["ppl/embedded"], rel=1e-3)
    assert full == pytest.approx(float(np.exp(done.arrays["reference_nll/embedded"].mean())), rel=1e-3)
    assert low <= value <= high
    assert "license: apache-2.0" in text
    assert "2 windows of 256 tokens of embedded" in text


def test_a_licence_is_what_the_files_of_a_model_name(tmp_path: Path) -> None:
    cards = {
        "plain": "---\nlicense: MIT\n---\n# x",
        "other": "---\nlicense: other\nlicense_name: llama3\n---\n",
        "none": "# x",
        "list": "---\nlicense: [a, b]\n---\n",
        "broken": "---\nlicense: [\n---\n",
    }
    for name, text in cards.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(text)
    found = {name: licence_of(str(tmp_path / name)) for name in cards}
    assert found == {"plain": "mit", "other": "llama3", "none": None, "list": None, "broken": None}
    assert json.dumps([licence_of(str(tmp_path)), licence_of("random"), licence_of("embedded")]) == (
        '[null, null, "apache-2.0"]'
    )
