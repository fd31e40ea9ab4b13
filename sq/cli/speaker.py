"""A model and its tokenizer that answer: the prompt as tokens, the reply as a stream, and what it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TextStreamer

from sq.cli.status import Mistake
from sq.evaluate.speed.models import weight_bytes
from sq.models.memory import PeakMemory
from sq.nn.kv_cache import Int4Cache

Show = Callable[[str], None]


@dataclass(frozen=True)
class Reply:
    """What was said, and what it took.

    Attributes:
        text: of the new tokens, special ones left out.
        ids: prompt and new tokens (1, S).
        count: number of new tokens.
        first: seconds until the first new token came; `seconds` until the last.
        peak: highest bytes of memory meanwhile, the model's own included.
        cache: size and kind of keys and values in words; empty where transformers shows none.
    """

    text: str
    ids: Tensor
    count: int
    first: float
    seconds: float
    peak: int
    cache: str

    def speed(self) -> str:
        """Tokens a second: of all, and of those behind the first, which waits for the prompt."""
        words = f"{self.count} tokens in {self.seconds:.1f} s, {self.count / self.seconds:.1f} a second"
        after = self.seconds - self.first
        behind = f" ({(self.count - 1) / after:.1f} behind the first)" if self.count > 1 and after > 0 else ""
        return f"{words}{behind}"


class Speaker:
    """Answers prompts with one model.

    Args:
        model: a transformers model on its device.
        chat: whether the tokenizer's chat template is put around prompts; it must have one then.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, *, chat: bool) -> None:
        self.model, self.tokenizer, self.chat = model, tokenizer, chat
        self.bytes = weight_bytes(model)

    def inputs(self, messages: Sequence[Mapping[str, str]]) -> Mapping[str, Tensor]:
        """Tokens of a conversation that ends with a prompt; without a chat template, of that prompt alone.

        Raises:
            Mistake: no token at all.
        """
        if self.chat:
            words = [dict(message) for message in messages]
            form: dict[str, Any] = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
            found: Any = self.tokenizer.apply_chat_template(words, **form)
        else:
            found = self.tokenizer(messages[-1]["content"], return_tensors="pt")
        if found["input_ids"].shape[1] == 0:
            raise Mistake("the prompt has no token; give at least one word")
        return {name: found[name].to(self.model.device) for name in ("input_ids", "attention_mask")}

    def reply(self, inputs: Mapping[str, Tensor], *, tokens: int, temperature: float, seed: int, show: Show) -> Reply:
        """Up to so many new tokens; `show` is given text as it comes. A raw prompt is shown too."""
        torch.manual_seed(seed)
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        memory, stream = PeakMemory(self.model.device), _Stream(self.tokenizer, show, skip_prompt=self.chat)
        made = self.model.generate(
            **inputs,
            **sampling,
            max_new_tokens=tokens,
            streamer=stream,
            return_dict_in_generate=True,
            pad_token_id=pad,
        )
        start, *came = stream.times
        new = made.sequences[0, inputs["input_ids"].shape[1] :]
        text = str(self.tokenizer.decode(new, skip_special_tokens=True))
        times = (came[0] - start, came[-1] - start)
        cache = made["cache"] if "cache" in made else made["past_key_values"]  # of transformers before 5.24
        return Reply(text, made.sequences, len(new), *times, memory.peak(), cache_size(cache))


def cache_size(cache: Any) -> str:
    """Size and kind of a cache's keys and values in words; empty for a cache that shows none."""
    if isinstance(cache, Int4Cache):
        return f"keys and values took {cache.nbytes / 1e3:,.0f} kB in int4"
    parts = [getattr(layer, name, None) for layer in getattr(cache, "layers", ()) for name in ("keys", "values")]
    found = [part for part in parts if part is not None]
    size = sum(part.nbytes for part in found) / 1e3
    return f"keys and values took {size:,.0f} kB in {str(found[0].dtype).removeprefix('torch.')}" if found else ""


class _Stream(TextStreamer):
    """Gives text to a function as it comes, and notes when the prompt went in and each new token came out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, show: Show, *, skip_prompt: bool) -> None:
        super().__init__(tokenizer, skip_prompt=skip_prompt, skip_special_tokens=True)
        self.show, self.times = show, list[float]()

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())
        super().put(value)  # type: ignore[no-untyped-call]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.show(text)
