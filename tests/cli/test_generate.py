"""sq-generate on a small packed checkpoint of the embedded model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import sq
from sq.cli.generate import main
from sq.config.compose import compose
from sq.runs.execute import execute

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    overrides = [f"paths.cache={folder / 'cache'}", f"save_to={folder / 'packed'}", "tracker=none", "task=none"]
    execute(compose([*overrides, "bits=w4a4kv4", "calibration=single_sample"]), None)
    return folder / "packed"


def test_text_is_streamed_and_repeats_with_its_seed(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told, config = [], AutoConfig.from_pretrained(packed)
    for seed in ("1", "1", "2"):
        assert main([str(packed), "def main(", "--max-new-tokens", "12", "--temperature", "1", "--seed", seed]) == 0
        told.append(capsys.readouterr())
    assert told[0].out.startswith("def main(")
    assert "12 tokens in" in told[0].err
    positions = len(AutoTokenizer.from_pretrained(packed)("def main(")["input_ids"]) + 11  # the last is not read again
    size = positions * config.num_hidden_layers * 2 * config.num_key_value_heads * (config.head_dim // 2 + 6)
    assert f"keys and values took {size / 1e3:,.0f} kB in int4" in told[0].err
    assert told[0].out == told[1].out != told[2].out


@torch.no_grad()
def test_a_loaded_model_holds_keys_and_values_in_int4(packed: Path) -> None:
    """Activations are rounded as well, and a sum in another order moves single codes: half of the logits to 1e-4."""
    model, ids = AutoModelForCausalLM.from_pretrained(packed), torch.arange(40, 72)[None]
    told = {"max_new_tokens": 10, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    told |= {"attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    made, ordinary = (model.generate(ids, **told, **more) for more in ({}, {"cache_implementation": "dynamic"}))
    assert type(made.past_key_values) is sq.Int4Cache
    found, expected = (torch.cat(run.logits).float() for run in (made, ordinary))
    assert float((found - expected).abs().median()) < 1e-4 * float(expected.square().mean().sqrt())
    assert torch.equal(made.sequences, ordinary.sequences)


def test_a_folder_that_is_none_ends_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "x"]) == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["", "--seed", "1"], "the prompt is empty"),
        (["x", "--device", "tpu"], "--device=tpu; allowed: auto, cpu, cuda"),
        (["x", "--device", "cuda:99"], "cuda"),
        (["x", "--temperature", "nan"], "--temperature nan; allowed"),
        (["x", "--temperature", "-1"], "--temperature -1.0; allowed"),
        (["x", "--max-new-tokens", "0"], "--max-new-tokens 0; allowed: at least 1"),
        (["x", "--seed", "-1"], "--seed -1; allowed"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    packed: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(packed), *words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1


def test_a_damaged_folder_is_one_line_and_status_1(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tokenizer.json", "config.json", "model-00001-of-00009.safetensors"):
        shutil.copytree(packed, tmp_path / name)
        content = bytearray((tmp_path / name / name).read_bytes())
        content[len(content) // 2] ^= 4
        (tmp_path / name / name).write_bytes(content)
        assert main([str(tmp_path / name), "x"]) == 1
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sq-generate: ")]
        assert len(told) == 1
