"""`sq-generate FOLDER [PROMPT]`: text from a packed checkpoint, or from any model that transformers loads."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sq.cli.status import Mistake, ended, picked_device, refuse_no_model
from sq.models.device import ALLOWED

if TYPE_CHECKING:
    import torch

    from sq.cli.speaker import Reply, Speaker

FROM_RECIPE = ""  # --compare without a value


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse a command line, stream replies, print tokens a second and memory; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="sq-generate",
        description="Stream text from a packed checkpoint. Where the model has a chat template, the prompt is a "
        "message; without a prompt, each line of the standard input is one, and the conversation goes on.",
    )
    parser.add_argument("folder", help="written by `python run.py save_to=FOLDER`, or its name on the hub")
    parser.add_argument("prompt", nargs="?", help="left out: read messages, one a line")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without the chat template")
    parser.add_argument("--system", metavar="TEXT", help="a system message in front of the conversation")
    parser.add_argument(
        "--compare",
        nargs="?",
        const=FROM_RECIPE,
        metavar="MODEL",
        help="show the model in full precision beside the quantized one; MODEL (folder, GGUF file, hub id) where "
        "the packed folder does not say where it came from",
    )
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token every time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help=ALLOWED)
    options = parser.parse_args(arguments)
    return ended("sq-generate", lambda: _generate(options))


def _refuse_mistakes(options: argparse.Namespace) -> None:
    """Raise Mistake for options that nothing can be made of."""
    refuse_no_model(options.folder)
    if options.prompt == "":
        raise Mistake("the prompt is empty; give at least one word")
    if options.compare is not None and options.prompt is None:
        raise Mistake("--compare answers one prompt twice; give a prompt")
    if options.raw and options.system is not None:
        raise Mistake("--system is part of a chat template; leave --raw out")
    if not 0 <= options.temperature < math.inf:
        raise Mistake(f"--temperature {options.temperature}; allowed: a number of at least 0")
    if options.max_new_tokens < 1:
        raise Mistake(f"--max-new-tokens {options.max_new_tokens}; allowed: at least 1")
    if not 0 <= options.seed < 2**63:
        raise Mistake(f"--seed {options.seed}; allowed: a whole number of 0 to 2^63 - 1")


def _generate(options: argparse.Namespace) -> None:
    _refuse_mistakes(options)
    device = picked_device(options.device)
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    import sq  # noqa: F401  (registers the quantizer)
    from sq.cli.speaker import Speaker

    logging.disable_progress_bar()
    tokenizer: Any = AutoTokenizer.from_pretrained(options.folder, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(options.folder, trust_remote_code=False)  # typed for its mixin
    chat = tokenizer.chat_template is not None and not options.raw
    if options.system is not None and not chat:
        raise Mistake(f"{options.folder} has no chat template, so that no --system message has a place")
    speaker = Speaker(model.to(device), tokenizer, chat=chat)
    if options.compare is not None:
        _compare(options, speaker, device)
    elif options.prompt is not None:
        _, reply = _said(options, speaker, [*_system(options), _user(options.prompt)])
        print(_measured(reply, speaker, device), file=sys.stderr)
    else:
        _converse(options, speaker, device)


def _said(options: argparse.Namespace, speaker: Speaker, messages: list[dict[str, str]]) -> tuple[str, Reply]:
    """Stream the reply to a conversation to the standard output."""
    reply = speaker.reply(
        speaker.inputs(messages), **_wanted(options), show=lambda text: print(text, end="", flush=True)
    )
    print()
    return reply.text, reply


def _converse(options: argparse.Namespace, speaker: Speaker, device: torch.device) -> None:
    """Answer each line of the standard input; with a chat template, as one conversation."""
    messages = _system(options)
    reply = None
    for line in _lines():
        messages.append(_user(line))
        text, reply = _said(options, speaker, messages)
        messages.append({"role": "assistant", "content": text})
        print(_measured(reply, speaker, device), file=sys.stderr)
    if reply is None:
        raise Mistake("there is no prompt: give one behind the folder, or lines on the standard input")


def _lines() -> Iterator[str]:
    """Lines of the standard input that are not empty; a terminal is shown a prompt."""
    terminal = sys.stdin.isatty()
    if terminal:
        print("A message a line; Ctrl-D ends.", file=sys.stderr)
    while True:
        if terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            return
        if line.strip():
            yield line.strip()


def _compare(options: argparse.Namespace, speaker: Speaker, device: torch.device) -> None:
    from sq.cli.base_model import base_model
    from sq.cli.compare import FULL, QUANTIZED, SideBySide, agreement, continuation_logits
    from sq.cli.speaker import Speaker

    base: Any = base_model(speaker.model.config, options.compare or None, str(device))
    base.generation_config = speaker.model.generation_config
    other = Speaker(base, speaker.tokenizer, chat=speaker.chat)
    inputs = speaker.inputs([*_system(options), _user(options.prompt)])
    with SideBySide() as columns:
        full = other.reply(inputs, **_wanted(options), show=columns.show(FULL))
        own = speaker.reply(inputs, **_wanted(options), show=columns.show(QUANTIZED))
    logits = [continuation_logits(model, full) for model in (base, speaker.model)]
    print(f"{FULL}: {_measured(full, other, device, peak=False)}", file=sys.stderr)
    print(f"{QUANTIZED}: {_measured(own, speaker, device, peak=False)}", file=sys.stderr)
    print(agreement(full, own, *logits), file=sys.stderr)


def _wanted(options: argparse.Namespace) -> dict[str, Any]:
    return {"tokens": options.max_new_tokens, "temperature": options.temperature, "seed": options.seed}


def _system(options: argparse.Namespace) -> list[dict[str, str]]:
    return [] if options.system is None else [{"role": "system", "content": options.system}]


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _measured(reply: Reply, speaker: Speaker, device: torch.device, *, peak: bool = True) -> str:
    """Speed and memory in a line. Two models that are loaded at once have no peak of their own."""
    memory = f", at most {reply.peak / 1e6:,.0f} MB in use" if peak else ""
    words = f"{reply.speed()} on {device}; the model takes {speaker.bytes / 1e6:,.1f} MB{memory}"
    return f"{words}; {reply.cache}" if reply.cache else words


if __name__ == "__main__":
    sys.exit(main())
