from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sq.errors import DataError
from sq.evaluate import zeroshot as module
from sq.evaluate.zeroshot import zeroshot

pytestmark = pytest.mark.slow

QUESTIONS = [
    {"query": f"case {i}:", "choices": [" a", " bcd", " ef", " " + "g" * (i % 5 + 1)], "gold": i % 4} for i in range(12)
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({"</s>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=128,
            initializer_range=0.5,
        )
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tasks"
    path.mkdir()
    write_task(path, "first")
    write_task(path, "second", QUESTIONS[:6])
    return path


def write_task(path: Path, name: str, questions: list[dict[str, object]] = QUESTIONS, version: float = 1.0) -> None:
    (path / f"{name}.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    metrics = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")]
    config = {
        "task": name, "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(path / f"{name}.jsonl")}, "cache_dir": str(path / "cache")},
        "doc_to_text": "query", "doc_to_choice": "choices", "doc_to_target": "gold", "target_delimiter": "",
        "metric_list": metrics, "metadata": {"version": version},
    }  # fmt: skip
    (path / f"{name}.yaml").write_text(json.dumps(config))


@torch.no_grad()
def by_hand(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: list[dict[str, object]], normalize: bool
) -> float:
    """Accuracy from one forward a choice."""
    right = 0
    for question in questions:
        scores = []
        for choice in question["choices"]:  # type: ignore[attr-defined]
            start = len(tokenizer(question["query"])["input_ids"])
            ids = torch.tensor([tokenizer(question["query"] + choice)["input_ids"]])
            logits = model(ids).logits[0].log_softmax(-1)
            score = logits[start - 1 : -1].gather(1, ids[0, start:, None]).sum().item()
            scores.append(score / len(choice) if normalize else score)
        right += scores.index(max(scores)) == question["gold"]
    return right / len(questions)


@pytest.mark.parametrize("batch", [5, "auto"])
def test_scores_agree_with_a_loop_over_choices(
    batch: int | str, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    state = torch.random.get_rng_state()
    found = zeroshot(
        model, tokenizer, ["first", "second"], batch_size=batch, include_path=folder, metric={"second": "acc_norm"}
    )
    first = by_hand(model, tokenizer, QUESTIONS, normalize=False)
    second = by_hand(model, tokenizer, QUESTIONS[:6], normalize=True)
    assert found.metrics["acc/first"] == pytest.approx(first)
    assert found.metrics["acc/second"] == pytest.approx(second)
    assert found.metrics["acc/mean"] == pytest.approx((first + second) / 2)
    # Standard error of a mean of n zeros and ones with n - 1 in the variance.
    assert found.metrics["acc_stderr/first"] == pytest.approx((first * (1 - first) / 11) ** 0.5)
    assert found.versions["task/first"] == 1.0
    assert found.versions["metric/second"] == "acc_norm"
    assert found.versions["n_shot/first"] == 0
    assert {"lm_eval", "transformers"} <= set(found.versions)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_task_is_shown_from_its_start_to_its_end(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """lm-eval's bar counts requests: one a choice of each question."""
    seen: list[tuple[str, int, int]] = []
    zeroshot(
        model, tokenizer, ["first"], batch_size=4, include_path=folder,
        show=lambda text, done, total: seen.append((text, done, total)),
    )  # fmt: skip
    requests = sum(len(question["choices"]) for question in QUESTIONS)
    assert seen[0] == ("zero-shot first", 0, 1)
    assert seen[1] == ("zero-shot first", 0, requests)
    assert ("zero-shot first", requests, requests) in seen


def test_finished_tasks_are_not_run_again(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = tmp_path / "cache"
    original = module._run

    def interrupted(harness: object, manager: object, name: str, limit: float | None) -> dict[str, object]:
        if name == "second":
            raise KeyboardInterrupt
        return original(harness, manager, name, limit)

    def evaluate(**changed: object) -> module.ZeroShot:
        arguments = {
            "batch_size": 4,
            "include_path": folder,
            "cache_dir": cache,
            "cache_key": "run",
            "limit": 4,
        } | changed
        return zeroshot(model, tokenizer, ["first", "second"], **arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(module, "_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate()
    (finished,) = cache.iterdir()
    assert finished.name.startswith("first-")
    ran: list[str] = []
    monkeypatch.setattr(module, "_run", lambda h, m, name, limit: ran.append(name) or original(h, m, name, limit))
    whole = evaluate()
    assert ran == ["second"]
    monkeypatch.setattr(module, "_task_manager", lambda *_: pytest.fail("tasks were indexed although all are cached"))
    assert evaluate() == whole
    monkeypatch.undo()
    ran.clear()
    monkeypatch.setattr(module, "_run", lambda h, m, name, limit: ran.append(name) or original(h, m, name, limit))
    evaluate(cache_key="another model")
    evaluate(limit=3)
    finished.write_text("{ half a fi")
    evaluate()
    assert ran == ["first", "second", "first", "second", "first"]
    write_task(folder, "second", version=2.0)
    assert evaluate().versions["task/second"] == 2.0


def test_wrong_tasks(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name at least one"):
        zeroshot(model, tokenizer, [], batch_size=1)
    with pytest.raises(DataError, match="is not a folder"):
        zeroshot(model, tokenizer, ["first"], batch_size=1, include_path=tmp_path / "absent")
    with pytest.raises(ValueError, match="cache_dir needs cache_key"):
        zeroshot(model, tokenizer, ["first"], batch_size=1, include_path=folder, cache_dir=tmp_path)
    with pytest.raises(DataError, match="has no metric 'f1'; allowed: acc, acc_norm"):
        zeroshot(model, tokenizer, ["first"], batch_size=4, include_path=folder, metric={"first": "f1"}, limit=2)
    (folder / "first.jsonl").unlink()
    with pytest.raises(DataError, match="zero-shot task first: documents cannot be loaded"):
        zeroshot(model, tokenizer, ["first"], batch_size=1, include_path=folder)


def test_an_unknown_task_gets_near_misses(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    real = lm_eval.tasks.TaskManager
    # lm-eval's own index of thousands of files is left out: it takes seconds and is not what is tested.
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda include_path, **_: real(None, include_path, False))
    with pytest.raises(DataError, match=r"unknown zero-shot task 'frist' \(near: first\)"):
        zeroshot(model, tokenizer, ["frist"], batch_size=1, include_path=folder)
