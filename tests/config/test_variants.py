"""The rows of the ablation: what each composes to, as the files of conf/method/ablation/ did that they replace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sq.config.choices import CONF, VARIANTS, exists
from sq.config.compose import compose, compose_jobs
from sq.config.parse import as_config
from sq.runs.references import reference

pytestmark = pytest.mark.slow

COMPOSED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "ablation_methods.json").read_text())


@pytest.mark.parametrize("name", COMPOSED)
def test_a_variant_is_what_its_file_composed_to(name: str) -> None:
    settings = compose([f"method=ablation/{name}"])
    section = as_config(settings)["method"]
    assert section == {"quantizes": True, **COMPOSED[name]}
    assert reference(compose(), f"ablation/{name}").method == settings.method


def test_all_rows_are_there_and_no_file_is() -> None:
    assert len(COMPOSED) == 30
    assert all(exists("method", f"ablation/{name}") for name in COMPOSED)
    assert not exists("method", "ablation/nothing")
    assert not (CONF / "method" / "ablation").exists()


def test_the_list_of_variants_is_no_setting_of_a_run() -> None:
    jobs = compose_jobs(["experiment=table_ablation", "method=ablation/art,rtn", "weights=rtn"])
    assert [job.method.name for job in jobs] == ["art", "rtn"]
    assert all(VARIANTS not in as_config(job) for job in jobs)


def test_a_variant_takes_arguments_and_an_unknown_one_is_a_mistake() -> None:
    assert compose(["method=ablation/art", "method.art_steps=3"]).method.arguments["art_steps"] == 3
    with pytest.raises(ValueError, match=r"method=ablation/arts; allowed: "):
        compose(["method=ablation/arts"])
