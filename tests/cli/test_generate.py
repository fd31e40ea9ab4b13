"""sq-generate on a small packed checkpoint of the embedded model."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import sq
from sq.cli.compare import agreement
from sq.cli.generate import main
from sq.cli.speaker import Reply, Speaker

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{% for message in messages %}# {{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}def main({% endif %}"
)


@pytest.fixture(scope="module")
def chatty(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "packed"
    shutil.copytree(packed, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


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


def test_two_equal_replies_agree_in_everything() -> None:
    reply = Reply("", torch.tensor([[5, 1, 2, 3]]), 3, 0.1, 0.2, 0, "")
    other = Reply("", torch.tensor([[5, 1, 4]]), 2, 0.1, 0.2, 0, "")
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    assert "the same for 3 of 3 tokens" in agreement(reply, reply, logits, logits)
    assert "KL 0.0000 nats a token, the same likeliest token at 100%" in agreement(reply, reply, logits, logits)
    assert "the same for 1 of 3 tokens" in agreement(reply, other, logits, logits)
    moved = logits.clone()
    moved[0] = -moved[0]
    p, q = logits[0].softmax(-1), moved[0].softmax(-1)
    assert f"KL {float((p * (p / q).log()).sum()) / 3:.4f} nats" in agreement(reply, other, logits, moved)


def test_a_folder_that_is_none_ends_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "x"]) == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["", "--seed", "1"], "the prompt is empty"),
        (["x", "--system", "y"], "has no chat template"),
        (["x", "--system", "y", "--raw"], "leave --raw out"),
        (["--compare", "--seed", "1"], "--compare answers one prompt twice; give a prompt"),
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


def test_a_chat_template_is_put_around_the_prompt(chatty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reply is that to the text which the template makes; the prompt is not said again."""
    few = ["--max-new-tokens", "6"]
    assert main([str(chatty), "hello", *few]) == 0
    reply = capsys.readouterr().out
    assert main([str(chatty), "# user: hello\ndef main(", "--raw", *few]) == 0
    assert capsys.readouterr().out == "# user: hello\ndef main(" + reply
    assert main([str(chatty), "hello", "--system", "be short", *few]) == 0
    assert main([str(chatty), "# system: be short\n# user: hello\ndef main(", "--raw", *few]) == 0
    told = capsys.readouterr().out
    assert "# system: be short" in told


def test_lines_of_the_standard_input_are_one_conversation(
    chatty: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    inputs = Speaker.inputs

    def watched(speaker: Speaker, messages: list[dict[str, str]]) -> object:
        seen.append([f"{message['role']}: {message['content']}" for message in messages])
        return inputs(speaker, messages)

    monkeypatch.setattr(Speaker, "inputs", watched)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    assert main([str(chatty), "--max-new-tokens", "4"]) == 0
    told = capsys.readouterr()
    first = told.out.splitlines()[0]
    assert seen[0] == ["user: one"]
    assert seen[1][0] == "user: one"
    assert seen[1][1].startswith("assistant: ")
    assert seen[1][1].removeprefix("assistant: ").startswith(first)
    assert seen[1][2] == "user: two"
    assert len(re.findall("4 tokens in", told.err)) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert main([str(chatty)]) == 2
    assert "there is no prompt" in capsys.readouterr().err


def test_speed_and_memory_are_told(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(packed), "def main(", "--max-new-tokens", "5"]) == 0
    told = capsys.readouterr().err
    found = re.search(r"5 tokens in ([\d.]+) s, ([\d.]+) a second .* takes ([\d.,]+) MB, at most ([\d,]+) MB", told)
    assert found is not None, told
    held = sum(file.stat().st_size for file in packed.glob("*.safetensors")) / 1e6  # and their headers
    assert float(found[3]) == pytest.approx(held, rel=0.02)
    assert float(found[4].replace(",", "")) > float(found[3])


@pytest.mark.usefixtures("own_cache")
def test_full_precision_stands_beside_the_quantized_model(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(packed), "def main(", "--max-new-tokens", "8", "--compare"]) == 0
    told = capsys.readouterr()
    assert re.search("full precision .* quantized", told.out)
    assert told.out.count("def main(") == 2
    sizes = [float(size) for size in re.findall(r"the model takes ([\d.]+) MB", told.err)]
    assert sizes[0] > 1.5 * sizes[1]
    found = re.search(r"the same for (\d+) of 8 tokens; .*KL ([\d.]+) .* token at (\d+)%", told.err)
    assert found is not None, told.err
    assert 0 < float(found[2]) < 2


@pytest.mark.usefixtures("own_cache")
def test_a_base_is_found_by_path_and_another_model_is_refused(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sq.embedded.model_folder import embedded_checkpoint

    folder = tmp_path / "full"
    shutil.copytree(embedded_checkpoint(packed.parent / "singlequant"), folder)
    config = AutoConfig.from_pretrained(packed)
    assert main([str(folder), "def main(", "--compare"]) == 2
    assert "says what it was made from" in capsys.readouterr().err
    small = AutoConfig.from_pretrained(folder)
    small.vocab_size //= 2
    AutoModelForCausalLM.from_config(small).save_pretrained(tmp_path / "small")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "small")
    assert main([str(packed), "def main(", "--compare", str(tmp_path / "small")]) == 2
    assert f"its vocab_size are [{small.vocab_size}], not [{config.vocab_size}]" in capsys.readouterr().err
    assert main([str(packed), "def main(", "--max-new-tokens", "4", "--compare", str(folder)]) == 0
    assert "the same likeliest token" in capsys.readouterr().err
