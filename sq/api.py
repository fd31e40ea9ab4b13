"""The Python API for those who do not want Hydra: one call quantizes a model and hands it back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sq.config.compose import compose
from sq.runs.execute import execute


@dataclass(frozen=True)
class Quantized:
    """A quantized model and its measurements.

    Attributes:
        model: a transformers model; its linears are `sq.nn.linear.QuantizedLinear` (fake quantization: integer grids
            in floating point) or `PackedLinear` (integers).
        tokenizer: of the model; None for random weights (model="random_llama2_7b"), which have none.
        metrics: flat numbers, named as in result.json.
        sites: one entry a layer and site: peak over rms of the tokens before and after the transform, multiply-adds.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    metrics: Mapping[str, float]
    sites: Sequence[Mapping[str, Any]]


def quantize(
    model: str | Path = "tiny",
    *,
    method: str = "singlequant",
    bits: str = "w4a4",
    weights: str = "rtn",
    activations: str = "symmetric",
    task: str = "none",
    packed: bool = False,
    overrides: Sequence[str] = (),
) -> Quantized:
    """Quantize a model in memory, with the same configs and the same pipeline as `python run.py`.

    Args:
        model: a name from conf/model, a local folder, a GGUF file (FILE.gguf or pip:<distribution>), or a hub id
            (owner/name).
        method, weights, activations: names from the config groups.
        bits: a label, `w<format>a<format>[q<format>][kv<format>]`: "w4a4", "w4a8kv4", "nvfp4".
        packed: integer weights and products of integers instead of fake quantization; `sq.save_packed` writes them.
        task: what is measured besides; "none" measures nothing, "perplexity" compares with full precision.
        overrides: anything else, as on the command line: ["calibration.tokens=8192", "method.rank=16"].

    Examples:
        >>> quantized = sq.quantize("path/or-id", method="singlequant", bits="w4a4", weights="gptq")
        >>> quantized.model.generate(**quantized.tokenizer("def main(", return_tensors="pt"))

    Raises:
        ConfigError: every mistake of the arguments together.
        SQError: a model, text or calibration that cannot be used.
    """
    chosen = [f"model={model}"]
    file = str(model).endswith(".gguf") or str(model).startswith("pip:")
    if file or "/" in str(model) or Path(model).expanduser().is_dir():  # the defaults of checkpoints from the hub
        chosen = ["model=custom", f"model.path={_quoted(str(model))}"]
    settings = compose(
        [
            *chosen,
            f"method={method}",
            f"bits={bits}",
            f"weights={weights}",
            f"activations={activations}",
            f"task={task}",
            "tracker=none",
            "reference_methods=[]",
            *overrides,
        ]
    )
    done = execute(settings, None, keep_model=True, packed=packed)
    assert done.model is not None
    return Quantized(done.model, done.tokenizer, done.metrics, done.extras["sites"])


def _quoted(text: str) -> str:
    """A text as Hydra's grammar takes it literally: quotes, the backslashes in front of them and ${ are escaped."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return "'" + escaped.replace("${", "\\${") + "'"
