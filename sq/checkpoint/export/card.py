"""The model card of an exported folder: README.md, from config.json and the stamp beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sq.checkpoint.card import Score, compose_card, facts
from sq.checkpoint.export.stamp import STAMP, read_stamp
from sq.checkpoint.manifest import CARD, CONFIG
from sq.io import read_json, write_text


def write_export_card(folder: Path, scores: Sequence[Score] = (), note: str = "") -> None:
    """Write the card of an exported folder, in the place of one that is there.

    Args:
        scores: what the run measured, on the fake model whose codes these are.
        note: how: windows, tokens.
    """
    stamp = read_stamp(folder) or {}
    text = export_card_text(read_json(folder / CONFIG), stamp.get("recipe") or {}, scores, note, stamp.get("version"))
    write_text(folder / CARD, text)


def export_card_text(
    config: Mapping[str, Any],
    recipe: Mapping[str, Any],
    scores: Sequence[Score] = (),
    note: str = "",
    version: str | None = None,
) -> str:
    """The card of an exported model.

    Args:
        config: content of config.json.
        recipe: what made the weights.
        version: of this package, which wrote the folder.
    """
    data = config["quantization_config"]
    online = sorted((data.get("transform_config") or {}).get("config_groups") or {})
    written = " ".join(filter(None, ("singlequant", version))) + f"; all settings stand in {STAMP}"
    rows = [
        *facts(config, recipe, written),
        ("format", f"compressed-tensors, {data['format']}"),
        ("transforms at run time", ", ".join(online) or "none"),
    ]
    floats = "fp4" in str(data["format"])  # decompressed to bfloat16, whatever the model's dtype
    plain = _PLAIN.format(more=", dtype=torch.bfloat16" if floats else "", torch="import torch\n" if floats else "")
    use = _USE.format(transformers=_ONLINE if online else plain)
    words = "quantized by the framework SingleQuant and written in the format compressed-tensors"
    note = " ".join(filter(None, (note, _FAKE if scores else "")))
    return compose_card(recipe, words, rows, scores, note, use, tags=["compressed-tensors"])


_FAKE = "The numbers are of these very codes, computed in floating point by the run that wrote the folder."
_USE = """
## Use

FOLDER stands for this folder, or for its name on the hub. SingleQuant need not be installed.

{transformers}
**vLLM** reads the same format, in versions that have kernels for these bits. It has not been run with this folder.
"""
_ONLINE = """\
**Not with transformers:** it ignores `transform_config` without a word, and this model, whose transforms are applied at
run time, computes nonsense there. The reader must be one that applies them, as vLLM does.
"""
_PLAIN = """\
    pip install transformers compressed-tensors

```python
{torch}from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER"{more})
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=32)[0]))
```
"""
