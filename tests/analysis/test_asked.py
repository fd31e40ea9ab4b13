"""Experiments are found from the commands that made the runs, and nothing is composed for those without runs."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from synthetic_runs import write_synthetic

from sq.analysis import MissingRuns, load
from sq.analysis.asked import Asked, asked, recorded
from sq.analysis.report import main
from sq.analysis.report.cli import COMPLETE
from sq.analysis.tables import table_main
from sq.errors import ConfigError

RUNS = "python run.py -m experiment=table_main"


def frame(*runs: tuple[str, str], command: str = "python run.py", task: str = "perplexity") -> pd.DataFrame:
    rows = [
        {"model": model, "method": method, "status": "finished", "command": command, "task.name": task}
        for model, method in runs
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("commands", "found"),
    [
        ([RUNS], [()]),
        ([f"{RUNS} paths.results=/x tracker=none force=true hydra/launcher=joblib hydra.launcher.n_jobs=2"], [()]),
        ([f"{RUNS} model=llama2_7b effort=1"], [("model=llama2_7b", "effort=1")]),
        ([f"{RUNS} method=rtn", f"{RUNS} method=cat seed=0"], [("method=rtn",), ("seed=0", "method=cat")]),
        ([f"{RUNS} method=rtn", f"{RUNS} method=cat"], [("method=cat,rtn",)]),
        ([f"{RUNS} method=rtn", RUNS], [()]),
        (["python run.py model=tiny", "python -c 'unclosed", "python run.py experiment=of_somebody_else"], []),
    ],
)  # fmt: skip
def test_overrides_are_those_that_were_typed(commands: list[str], found: list[tuple[str, ...]]) -> None:
    assert recorded(pd.DataFrame({"command": commands})).get("table_main", []) == found


def test_what_was_named_is_looked_for_whatever_share_of_it_is_there() -> None:
    runs = frame(("smollm2", "rtn"), command=RUNS)
    assert asked(runs, "table_main") == [Asked((), True)]
    assert asked(runs, "table_perplexity") == []


def test_what_nobody_named_is_looked_for_where_half_of_its_methods_were_run() -> None:
    four = [("tiny", method) for method in ("rtn", "quarot", "duquant", "singlequant")]
    assert asked(frame(*four), "figure_tradeoff") == [Asked((), False)]
    assert asked(frame(*four[:3]), "figure_tradeoff") == []
    assert asked(frame(*four, task="none"), "figure_tradeoff") == []
    assert asked(frame(*[("other", method) for _, method in four]), "figure_tradeoff") == []


def test_overrides_of_one_experiment_serve_others() -> None:
    command = "python run.py -m experiment=table_perplexity model=custom model.path=/m/Qwen3-4B"
    four = [("Qwen3-4B", method) for method in ("rtn", "quarot", "duquant", "singlequant")]
    words = ("model=custom", "model.path=/m/Qwen3-4B")
    assert asked(frame(*four, command=command), "figure_tradeoff") == [Asked(words, False)]
    assert asked(frame(*four, command=command), "table_perplexity") == [Asked(words, True)]


def test_given_overrides_are_the_only_ones() -> None:
    runs = frame(("smollm2", "rtn"), ("tiny", "rtn"), command=RUNS)
    assert asked(runs, "table_perplexity", ["seed=1"]) == [Asked(("seed=1",), True)]
    assert asked(runs, "table_perplexity", ["model=llama2_7b"]) == []


@pytest.mark.slow
def test_runs_of_a_model_that_is_not_on_this_machine_go_into_their_table(tmp_path: Path) -> None:
    """Ids need the model's files; the commands and the record of the sweep say as much."""
    words = ("model=custom", "model.path=/gone/M-1B")
    command = f"python run.py -m experiment=table_main {' '.join(words)}"
    results = tmp_path / "runs"
    own = [write_synthetic(results, "M-1B", name, weights="gptq", command=command) for name in ("rtn", "singlequant")]
    reused = write_synthetic(results, "M-1B", "cat", weights="gptq")
    write_synthetic(results, "M-1B", "quarot", weights="gptq")  # of no experiment
    sweep = results / ".sweeps" / "20260101-000000"
    sweep.mkdir(parents=True)
    job = {"overrides": ["method=cat", "experiment=table_main", *words], "runs": [str(reused)], "error": None}
    (sweep / "job-00000.json").write_text(json.dumps(job))
    frame = load(results)
    table = table_main(frame, overrides=words)
    shown = {row["method"]: row["KL GPTQ"] for row in table.frame.to_dict("records")}
    kl = {row["method"]: row["kl/pydoc"] for _, row in frame.iterrows()}
    assert shown == {name: kl[name] for name in ("cat", "rtn", "singlequant")}
    assert main(["--results", str(results), "--out", str(tmp_path), "--only", "real"]) == COMPLETE
    page = (tmp_path / "report.html").read_text()
    assert "only runs that its command made are shown" in page
    assert all(f">{folder.name}</td>" in page for folder in (*own, reused))
    with pytest.raises((ConfigError, MissingRuns)):
        table_main(frame, overrides=["model=custom", "model.path=/gone/Other"])
