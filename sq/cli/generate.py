"""`sq-generate FOLDER "prompt"`: stream text from a packed checkpoint, or from any model folder transformers loads."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sq.cli.status import Mistake, ended, picked_device
from sq.models.device import ALLOWED


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse a command line, stream the continuation, print tokens a second and the cache's bytes; return the status."""
    parser = argparse.ArgumentParser(prog="sq-generate", description="Stream text from a packed checkpoint.")
    parser.add_argument("folder", help="written by `python run.py save_to=FOLDER`")
    parser.add_argument("prompt")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token every time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help=ALLOWED)
    options = parser.parse_args(arguments)
    return ended("sq-generate", lambda: _stream(options))


def _refuse_mistakes(options: argparse.Namespace) -> None:
    """Raise Mistake for options that nothing can be made of."""
    if not (Path(options.folder) / "config.json").is_file():
        raise Mistake(f"{options.folder} has no config.json: give a folder that `python run.py save_to=FOLDER` wrote")
    if not options.prompt:
        raise Mistake("the prompt is empty; give at least one word")
    if not 0 <= options.temperature < math.inf:
        raise Mistake(f"--temperature {options.temperature}; allowed: a number of at least 0")
    if options.max_new_tokens < 1:
        raise Mistake(f"--max-new-tokens {options.max_new_tokens}; allowed: at least 1")
    if not 0 <= options.seed < 2**63:
        raise Mistake(f"--seed {options.seed}; allowed: a whole number of 0 to 2^63 - 1")


def _stream(options: argparse.Namespace) -> None:
    _refuse_mistakes(options)
    device = picked_device(options.device)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer
    from transformers.utils import logging

    import sq  # noqa: F401  (registers the quantizer)

    folder = options.folder
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)  # typed for its mixin alone
    model.to(device)
    torch.manual_seed(options.seed)
    inputs = tokenizer(options.prompt, return_tensors="pt").to(device)
    inputs.pop("token_type_ids", None)
    if inputs["input_ids"].shape[1] == 0:
        raise Mistake("the prompt has no token; give at least one word")
    sampling = (
        {"do_sample": True, "temperature": options.temperature} if options.temperature > 0 else {"do_sample": False}
    )
    start = time.perf_counter()
    made = model.generate(
        **inputs,
        **sampling,
        max_new_tokens=options.max_new_tokens,
        streamer=TextStreamer(tokenizer),
        return_dict_in_generate=True,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    )
    count, seconds = made.sequences.shape[1] - inputs["input_ids"].shape[1], time.perf_counter() - start
    words = f"{count} tokens in {seconds:.1f} s, {count / seconds:.1f} a second on {device}"
    print(words + _cache_size(made.past_key_values), file=sys.stderr)


def _cache_size(cache: Any) -> str:
    from sq.nn.kv_cache import Int4Cache

    if isinstance(cache, Int4Cache):
        return f"; keys and values took {cache.nbytes / 1e3:,.0f} kB in int4"
    parts = [getattr(layer, name, None) for layer in getattr(cache, "layers", ()) for name in ("keys", "values")]
    found = [part for part in parts if part is not None]
    size = sum(part.nbytes for part in found) / 1e3
    return f"; keys and values took {size:,.0f} kB in {found[0].dtype}" if found else ""


if __name__ == "__main__":
    sys.exit(main())
