"""The model card says what the folder is, and the hub's own library reads its head."""

from __future__ import annotations

import re
from typing import Any

import pytest
from huggingface_hub import ModelCard

from sq.checkpoint.card import Score, card_text
from sq.checkpoint.export.card import export_card_text

RECIPE: dict[str, Any] = {
    "model": {"name": "small", "path": "owner/small"},
    "method": {"name": "singlequant"},
    "bits": "w4a4kv4",
    "weights": {"name": "gptq", "clip": "search"},
    "activations": {"name": "midrise", "clip": "site"},
    "kv_cache": {"name": "asymmetric"},
    "calibration": {"text": "pydoc", "tokens": 16384},
    "seed": 3,
    "licence": "apache-2.0",
}
SCORES = [Score("ppl", "pydoc", 18.92, 17.5, 20.25, 14.69), Score("acc", "arc_easy", 0.5)]


def config(recipe: Any, **more: Any) -> dict[str, Any]:
    return {"quantization_config": {"recipe": recipe, "version": "9.9"}, "dtype": "bfloat16", **more}


def test_the_head_is_what_the_hub_reads() -> None:
    data = ModelCard(card_text(config(RECIPE), SCORES, "How.")).data
    assert (data.license, data.base_model, data.library_name) == ("apache-2.0", "owner/small", "transformers")
    assert data["base_model_relation"] == "quantized"
    assert {"singlequant", "w4a4kv4"} <= set(data.tags)
    found = {(one.metric_type, one.dataset_name): one.metric_value for one in data.eval_results}
    assert found == {("perplexity", "pydoc"): 18.92, ("accuracy", "arc_easy"): 0.5}


def test_the_text_names_recipe_results_and_how_to_load() -> None:
    text = card_text(config(RECIPE, tie_word_embeddings=True), SCORES, "Measured on two windows.")
    assert "[owner/small](https://huggingface.co/owner/small)" in text
    for row in (
        "| perplexity | pydoc | 18.92 | 17.5 to 20.25 | 14.69 |",
        "| accuracy | arc_easy | 0.5 |  |  |",
        "| method | singlequant |",
        "| weights | gptq (clip search) |",
        "| activations | midrise (clip site) |",
        "| keys and values | asymmetric |",
        "| calibration | 16384 tokens of pydoc |",
        "| embedding and head | one matrix (tied) in bfloat16 |",
    ):
        assert row in text
    assert "Measured on two windows." in text
    assert "import sq" in text


@pytest.mark.parametrize("recipe", [None, [], {}, {"method": "test", "bits": 4}, {"model": "x", "licence": None}])
def test_a_recipe_that_says_little_makes_a_card_that_says_little(recipe: Any) -> None:
    text = card_text(config(recipe))
    assert "## Results" not in text
    assert "not named in the base model's files" in text
    assert ModelCard(text).data.eval_results is None


def test_files_that_are_not_there_are_not_named() -> None:
    """`save_pretrained` writes weights and config.json, and neither the loading module nor digests."""
    whole, bare = (card_text({"quantization_config": {"recipe": RECIPE, "version": "9", "files": files}})
                   for files in ({"model.safetensors": "0"}, None))  # fmt: skip
    assert "load_singlequant.py" in whole
    assert "sha256" in whole
    assert "load_singlequant.py" not in bare
    assert "sha256" not in bare
    assert "sq-generate FOLDER" in bare


def export_config(format: str = "pack-quantized", groups: tuple[str, ...] = ()) -> dict[str, Any]:
    online = {"config_groups": {name: {} for name in groups}} if groups else {}
    return {"quantization_config": {"format": format, "transform_config": online}, "dtype": "float32"}


def test_an_export_says_what_it_is_and_how_to_load_it_without_this_package() -> None:
    text = export_card_text(export_config(), RECIPE, SCORES, "Measured on two windows.", "9.9")
    card = ModelCard(text)
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "owner/small")
    assert {"compressed-tensors", "w4a4kv4"} <= set(card.data.tags)
    assert [one.metric_value for one in card.data.eval_results] == [18.92, 0.5]
    for row in (
        "| perplexity | pydoc | 18.92 | 17.5 to 20.25 | 14.69 |",
        "| weights | gptq (clip search) |",
        "| licence of the base model | apache-2.0 |",
        "| format | compressed-tensors, pack-quantized |",
        "| transforms at run time | none |",
        "| written by | singlequant 9.9; all settings stand in export.json |",
    ):
        assert row in text
    assert "import sq" not in text
    assert "It has not been run with this folder." in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(code, "card", "exec")
    assert "dtype" not in code


def test_an_export_with_transforms_warns_of_transformers() -> None:
    text = export_card_text(export_config(groups=("down",)), RECIPE)
    assert "| transforms at run time | down |" in text
    assert "Not with transformers" in text
    assert "from_pretrained" not in text
    assert "## Results" not in text
    assert "computed in floating point" not in text


def test_four_bit_floats_are_loaded_in_bfloat16() -> None:
    text = export_card_text(export_config("nvfp4-pack-quantized"), {})
    assert 'from_pretrained("FOLDER", dtype=torch.bfloat16)' in text
    assert "not named in the base model's files" in text


def test_words_of_a_recipe_stay_in_their_place() -> None:
    """A name that would end the head, or a cell of the table, is a name all the same."""
    name = "a\n---\nlicense: mit | b"
    text = card_text(config({**RECIPE, "model": {"name": name, "path": "x\n---\ny"}, "method": {"name": name}}), SCORES)
    data = ModelCard(text).data
    assert data.license == "apache-2.0"
    assert data.base_model is None
    assert "| method | a --- license: mit \\| b |" in text
