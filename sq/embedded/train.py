"""Train the embedded model: a small Llama on the standard library's own source.

How the committed weights were made, and what is written, is in README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sq.data.stdlib_text import stdlib_text, suite_text
from sq.io import read_json, write_json

WINDOW = 256
INIT_STD = 0.06  # 1/sqrt(hidden); the usual 0.02 starts slower here (loss 5.26 against 4.92 at step 220)
END_OF_TEXT = "<|endoftext|>"


def train(
    out: Path,
    *,
    steps: int = 6000,
    batch: int = 12,
    peak_lr: float = 3e-3,
    warmup: int = 100,
    weight_decay: float = 0.1,
    seed: int = 0,
    compile_model: bool = True,
    evaluate_every: int = 250,
    resume_at: int = 0,
    with_tests: bool = False,
) -> dict[str, Any]:
    """Train and save the embedded model; return its log.

    With `resume_at`, weights and log in `out` go on from that step as a new stage with a schedule of its own; Adam's
    moments start anew. `with_tests` adds the library's test suite, less the files about held-out modules, to the text.
    """
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    if resume_at:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    else:
        tokenizer = train_tokenizer([text for _, text in stdlib_text("train")])
        tokenizer.save_pretrained(out)
    tokens = tokenize(tokenizer, stdlib_text("train") + (suite_text() if with_tests else []))
    held_out = tokenize(tokenizer, stdlib_text("held_out"))
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32) if resume_at else build_model(tokenizer)
    decayed = [p for p in model.parameters() if p.ndim == 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak_lr, betas=(0.9, 0.95), fused=True)
    forward = torch.compile(model) if compile_model else model
    stream = batches(tokens, batch, torch.Generator().manual_seed(seed + resume_at))
    stage: dict[str, Any] = {
        "first_step": resume_at + 1,
        "with_tests": with_tests,
        "tokens_in_corpus": tokens.numel(),
        "settings": {
            "steps": steps,
            "batch": batch,
            "window": WINDOW,
            "peak_lr": peak_lr,
            "warmup": warmup,
            "weight_decay": weight_decay,
            "seed": seed,
        },
        "environment": {"python": platform.python_version(), "torch": torch.__version__},
        "entries": [],
    }
    log: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "stages": [stage]}
    if resume_at:
        log["stages"] = [*read_json(out / "training_log.json")["stages"], stage]
    start, running = time.perf_counter(), 0.0
    for step in range(resume_at + 1, steps + 1):
        lr = learning_rate(step - resume_at, steps - resume_at, peak_lr, warmup)
        for group in optimizer.param_groups:
            group["lr"] = lr
        ids = next(stream)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = forward(input_ids=ids[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running += loss.item()
        if step % 20 == 0:
            print(f"{step}/{steps} loss {loss.item():.4f} lr {lr:.2e} {time.perf_counter() - start:.0f}s", flush=True)
        if step % evaluate_every == 0 or step == steps:
            count = evaluate_every if step % evaluate_every == 0 else step % evaluate_every
            entry = {
                "step": step,
                "train_loss": running / count,
                "held_out_perplexity": perplexity(model, held_out),
                "seconds": round(time.perf_counter() - start, 1),
            }
            running = 0.0
            stage["entries"].append(entry)
            print(json.dumps(entry), flush=True)
            save(model, out, log)
    return log


def train_tokenizer(texts: list[str], vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on `texts`; one special token ends a module."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    special = dict.fromkeys(("eos_token", "pad_token", "bos_token"), END_OF_TEXT)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[tuple[str, str]]) -> torch.Tensor:
    """All texts as one row of token ids, each ended by the end-of-text token; int64, shape (T,)."""
    rows = tokenizer([text for _, text in texts], add_special_tokens=False)["input_ids"]
    return torch.tensor([i for row in rows for i in (*row, tokenizer.eos_token_id)], dtype=torch.int64)


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of 8.4 M parameters: hidden 256, intermediate 768, 8 layers, 4 heads, 2 KV heads."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        initializer_range=INIT_STD,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then cosine decay to 1% of the peak."""
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def batches(tokens: torch.Tensor, batch: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Endless batches of WINDOW + 1 tokens; an epoch visits every window once from a random offset, shuffled."""
    while True:
        offset = int(torch.randint(0, WINDOW, (1,), generator=generator))
        starts = torch.arange(offset, tokens.numel() - WINDOW - 1, WINDOW)
        starts = starts[torch.randperm(starts.numel(), generator=generator)]
        for chunk in starts[: starts.numel() // batch * batch].split(batch):
            yield torch.stack([tokens[s : s + WINDOW + 1] for s in chunk.tolist()])


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, tokens: torch.Tensor) -> float:
    """exp of the mean NLL over non-overlapping windows of WINDOW tokens (WINDOW - 1 targets each), bf16 autocast."""
    windows = tokens[: tokens.numel() // WINDOW * WINDOW].view(-1, WINDOW)
    total = 0.0
    for rows in windows.split(24):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").item()
    return math.exp(total / (windows.shape[0] * (WINDOW - 1)))


def save(model: LlamaForCausalLM, out: Path, log: dict[str, Any]) -> None:
    """Write bf16 weights and the log; the model in memory keeps its float32 weights."""
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    model.save_pretrained(out, state_dict=state)
    model.config.dtype = torch.bfloat16  # what is stored; save_pretrained notes the dtype in memory
    model.config.save_pretrained(out)
    write_json(out / "training_log.json", log)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--peak-lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume-at", type=int, default=0, help="go on from the weights in --out at this step")
    parser.add_argument("--with-tests", action="store_true", help="train on the library's test suite as well")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--no-compile", action="store_false", dest="compile_model")
    train(**vars(parser.parse_args()))
