"""The model card of a packed folder: README.md, whose head the hub reads (of exports: sq/checkpoint/export/card.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from sq.checkpoint.manifest import CARD, CONFIG
from sq.io import read_json, write_text
from sq.models.place import is_hub_id

LABELS = {
    "ppl": "perplexity",
    "kl": "KL from full precision, nats a token",
    "top1": "same likeliest token",
    "acc": "accuracy",
}
BASES = {"embedded": "the embedded model of SingleQuant", "random": "random weights"}


@dataclass(frozen=True)
class Score:
    """One number of a run.

    Attributes:
        metric: "ppl", "kl", "top1" or "acc".
        on: the text or task.
        value: the number; `low` and `high` are the ends of its 95% interval, None where the run has none.
        full: the same number of the model in full precision, where the run has it.
    """

    metric: str
    on: str
    value: float
    low: float | None = None
    high: float | None = None
    full: float | None = None


def write_card(folder: Path, scores: Sequence[Score] = (), note: str = "") -> None:
    """Write the card of a packed folder, in the place of one that is there.

    It serves for what `save_pretrained` of a loaded model wrote as well.

    Args:
        scores: what the run measured.
        note: how: windows, tokens.
    """
    write_text(folder / CARD, card_text(read_json(folder / CONFIG), scores, note))


def card_text(config: Mapping[str, Any], scores: Sequence[Score] = (), note: str = "") -> str:
    """The card of a packed model, from the content of its config.json."""
    data = config["quantization_config"]
    recipe = data["recipe"] if isinstance(data["recipe"], Mapping) else {}
    written = f"singlequant {data['version']}; all settings stand in config.json"
    whole = data.get("files") is not None  # save_pretrained writes weights and config alone
    use = _USE.format(more=_BY_ITSELF if whole else "", digests=_DIGESTS if whole else "")
    words = "quantized and packed by the framework SingleQuant"
    return compose_card(recipe, words, facts(config, recipe, written), scores, note, use, tags=["singlequant"])


def compose_card(
    recipe: Mapping[str, Any],
    words: str,
    rows: Iterable[tuple[str, str]],
    scores: Sequence[Score],
    note: str,
    use: str,
    *,
    tags: Sequence[str],
) -> str:
    """A card: the head, what the model is, a table of facts, results where there are some, and how to use it.

    Args:
        recipe: what made the weights; what it does not say is left out.
        words: behind the base model's name: "quantized by ...".
        rows: of the table.
        scores, note: what was measured, and how.
        use: Markdown.
        tags: for the hub, beside "quantized" and the bits.
    """
    names = (_of(recipe, "model", "name"), _short(recipe.get("method")), recipe.get("bits"))
    name = " ".join(" ".join(str(part) for part in names if part).split()) or "A quantized model"
    parts = [
        f"---\n{_head(recipe, name, scores, tags)}\n---\n\n# {name}\n",
        f"{_base(recipe)}, {words}.\n",
        _table(("", ""), list(rows)),
        f"\n## Results\n\n{_results(scores)}\n\n{note}" if scores else "",
        use,
    ]
    return "\n".join(part for part in parts if part)


def _head(recipe: Mapping[str, Any], name: str, scores: Sequence[Score], tags: Sequence[str]) -> str:
    path = _of(recipe, "model", "path")
    found = [
        EvalResult(
            task_type="text-generation",
            dataset_type=score.on,
            dataset_name=score.on,
            metric_type={"ppl": "perplexity", "acc": "accuracy"}.get(score.metric, score.metric),
            metric_value=score.value,
        )
        for score in scores
    ]
    data = ModelCardData(
        **({"base_model": path, "base_model_relation": "quantized"} if is_hub_id(path) else {}),
        license=recipe.get("licence"),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[*tags, "quantized", *([str(recipe["bits"])] if "bits" in recipe else [])],
        model_name=name if found else None,
        eval_results=found or None,
    )
    text: str = data.to_yaml()
    return text.strip()


def _base(recipe: Mapping[str, Any]) -> str:
    path, named = _of(recipe, "model", "path"), _of(recipe, "model", "name")
    if is_hub_id(path):
        return f"[{path}](https://huggingface.co/{path})"
    known = BASES.get(str(path)) or " ".join(dict.fromkeys(str(x) for x in (named, path and f"(`{path}`)") if x))
    return known[:1].upper() + known[1:] if path in BASES else known or "A model"


def facts(config: Mapping[str, Any], recipe: Mapping[str, Any], written: str) -> Iterator[tuple[str, str]]:
    """Rows of a card's table: licence, recipe, embedding and head, and what wrote the folder."""
    yield "licence of the base model", recipe.get("licence") or "not named in the base model's files"
    for part in ("method", "bits", "weights", "activations"):
        if (found := recipe.get(part)) is not None:
            yield part, _named(found)
    if (cache := recipe.get("kv_cache")) is not None and "kv16" not in str(recipe.get("bits", "")):
        yield "keys and values", _named(cache)
    if (tokens := _of(recipe, "calibration", "tokens")) is not None:
        yield "calibration", f"{tokens} tokens of {_of(recipe, 'calibration', 'text')}"
    if "seed" in recipe:
        yield "seed", str(recipe["seed"])
    matrices = "one matrix (tied)" if config.get("tie_word_embeddings") else "two matrices"
    yield "embedding and head", f"{matrices} in {config.get('dtype')}"
    yield "written by", written


def _named(part: Any) -> str:
    """A part of the recipe in a line: its name, with what is not the default of all of them."""
    if not isinstance(part, Mapping):
        return str(part)
    shown = {"clip": part.get("clip"), "group_size": part.get("group_size")}
    more = ", ".join(f"{key} {value}" for key, value in shown.items() if value is not None)
    return _short(part) + (f" ({more})" if more else "")


def _short(part: Any) -> str:
    """The name of a part of the recipe."""
    return str(part.get("name") if isinstance(part, Mapping) else part or "")


def _results(scores: Sequence[Score]) -> str:
    rows = [
        (
            LABELS.get(s.metric, s.metric),
            s.on,
            _number(s.value),
            _interval(s),
            "" if s.full is None else _number(s.full),
        )
        for s in scores
    ]
    return _table(("metric", "on", "value", "95% interval", "full precision"), rows)


def _interval(score: Score) -> str:
    return "" if score.low is None or score.high is None else f"{_number(score.low)} to {_number(score.high)}"


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = ([" ".join(str(cell).split()).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def _of(recipe: Mapping[str, Any], part: str, key: str) -> Any:
    found = recipe.get(part)
    return found.get(key) if isinstance(found, Mapping) else None


_USE = """
## Use

FOLDER stands for this folder, or for its name on the hub.

    pip install singlequant

```python
import sq  # registers the format with transformers
from transformers import pipeline

print(pipeline("text-generation", model="FOLDER")("Once upon a time")[0]["generated_text"])
```
{more}
On a command line:

    sq-generate FOLDER "Once upon a time"
    sq-eval FOLDER --tasks arc_easy
{digests}"""
_BY_ITSELF = """
Without `import sq`, pass `trust_remote_code=True`: transformers then runs `load_singlequant.py` of this folder, which
does the import.
"""
_DIGESTS = """
config.json holds a sha256 of every file but this one, and loading compares them.
"""
