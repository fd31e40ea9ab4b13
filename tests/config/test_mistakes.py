"""Every mistake of a configuration is told, all of them at once, before anything is loaded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sq.config.compose import check, compose
from sq.config.parse import as_config, parse
from sq.errors import ConfigError

RTN = "method=rtn"


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose([RTN, *overrides])
    return caught.value.problems


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method=quarott", ["method=quarott", "allowed: ", "rtn, singlequant"]),
        ("model=llama9", ["model=llama9", "tiny"]),
        ("bits=w1a1", ["bits=w1a1", "weights '1', activations '1'", "w<format>a<format>"]),
        ("metod=rtn", ["metod", "did you mean method"]),
        ("weights.dampng=1", ["weights.dampng", "unknown"]),
        ("bits=w1a4", ["bits=w1a4", "weights '1'", "2 to 8 or 16"]),
        ("bits=w4a9", ["bits=w4a9", "activations '9'", "2 to 8 or 16"]),
        ("bits=w4a4kvfour", ["bits=w4a4kvfour", "keys and values 'four'"]),
        ("bits=w4a4kv9", ["bits=w4a4kv9", "keys and values '9'", "2 to 8", "nvfp4"]),
        ("bits=true", ["bits=true", "no format", "w<format>a<format>"]),
        ("bits=4.0", ["bits=4.0"]),
        ("bits=mxfp5", ["bits=mxfp5", "weights and activations 'mxfp5'", "mxfp4"]),
        ("bits.weights=5", ["bits.weights=5", "bits is a label", "bits=w5a4"]),
        ("bits.keys=9", ["bits.keys=9", "bits is a label"]),
        ("+bits.weights=5", ["bits is a label", "bits=w5a4"]),
        ("cache=midrise", ["cache=midrise", "kv_cache=<name>"]),
        ("cache.clip=0.9", ["cache.clip=0.9", "kv_cache.<key>=<value>"]),
        ("+cache.clip=0.9", ["cache.clip=0.9", "kv_cache"]),
        ("activations.scheme=affine", ["activations.scheme=affine", "symmetric | asymmetric | midrise"]),
        ("weights.scheme=null", ["weights.scheme=null"]),
        ("activations.clip=0", ["activations.clip=0", "at most 1", "search | site"]),
        ("activations.clip=1.01", ["activations.clip=1.01"]),
        ("activations.clip=nan", ["activations.clip=nan"]),
        ("kv_cache.clip=site", ["kv_cache.clip=site", "at most 1 or 'search'"]),
        ("method.clip=site", ["method.clip=site", "for every method", "activations.clip=site"]),
        ("method.singlequant.clip=site", ["method.singlequant.clip=site", "activations.clip=site"]),
        ("activations.clip=find", ["activations.clip=find"]),
        ("activations.group_size=0", ["activations.group_size=0", "null or a whole number"]),
        ("calibration.tokens=255", ["calibration.tokens=255", "window=256", "at least 256"]),
        ("calibration.tokens=-1", ["calibration.tokens=-1"]),
        ("calibration.text=wikitext3", ["calibration.text=wikitext3", "wikitext2", "calibration.path"]),
        ("calibration.path=/nowhere/text.txt", ["calibration.path=/nowhere/text.txt", "exists"]),
        ("task.perplexity.texts=[a]", ["task.perplexity.texts=a", "task.perplexity.path"]),
        ("task.perplexity.count=0", ["task.perplexity.count=0"]),
        ("task.perplexity.dataset_path=/nowhere", ["task.perplexity.dataset_path=/nowhere"]),
        ("model.path=/nowhere/model", ["model.path=/nowhere/model", "hub id"]),
        ("model.path='not a model'", ["model.path=not a model"]),
        ("model.dtype=int4", ["model.dtype=int4", "bfloat16"]),
        ("model.device=tpu", ["model.device=tpu", "cuda:0", "xpu:0", "mps"]),
        ("model.device='cpu:0'", ["model.device=cpu:0", "auto, cpu"]),
        ("model.device='xpu:'", ["model.device=xpu:", "xpu:0"]),
        ("model.device='mps:1'", ["model.device=mps:1", "mps"]),
        ("model.outliers=many", ["model.outliers=many", "planted | none"]),
        ("model.outlier_strength=inf", ["model.outlier_strength=inf"]),
        ("model.name=a/b", ["model.name=a/b", "folder's name"]),
        ("method._target_=sq.nothing.Here", ["method._target_=sq.nothing.Here", "import path"]),
        ("method._target_=Here", ["method._target_=Here"]),
        ("reference_methods=[gold]", ["'gold'", "allowed: "]),
        ("tracker.tags=7", ["tracker.tags=7", "list"]),
        ("seed=-1", ["seed=-1"]),
        ("force=maybe", ["force=maybe", "true or false"]),
        ("bits=w4a4,w4a8", ["several values"]),
        ("=3", ["=3", "cannot be read"]),
        ("method=null", ["method"]),
        ("~bits", ["bits is missing"]),
        ("+extra=1", ["extra is unknown"]),
        ("weights.clip=${nothing}", ["nothing"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_mistake_says_what_was_got_and_what_is_allowed(override: str, words: list[str]) -> None:
    told = " | ".join(problems(override))
    for word in words:
        assert word in told


def test_all_mistakes_are_told_together() -> None:
    value_mistakes = ["weights.scheme=odd", "calibration.tokens=3", "activations.clip=7", "model.path=/nowhere"]
    told = problems("bits=w1a1", "metod=x", *value_mistakes)
    assert len(told) == 6
    message = str(ConfigError(told))
    assert message.startswith("the configuration has 6 mistakes:")
    assert "\n  6. " in message


def test_mistakes_of_a_method_and_of_everything_else_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = problems(
        "method=singlequant", "method.rank=abc", "method.urt_sweeps=0", "+method.foo=1", "weights.group_size=100",
        "seed=-1", f"save_to={tmp_path}/file/packed", "cache.clip=0.5", "calibration.tokens=10",
    )  # fmt: skip
    words = ["method.rank=abc", "urt_sweeps=0", "method.foo is unknown", "weights.group_size=100", "seed=-1",
             "save_to=", "kv_cache.<key>", "calibration.seed=-1", "method.seed=-1"]  # fmt: skip
    for word in words:
        assert any(word in one for one in told), (word, told)


@pytest.mark.slow
def test_a_wrong_label_and_unknown_keys_hide_no_other_mistake(tmp_path: Path) -> None:
    line = "bits=w4z4 method.alpha=abc method.rank=-1 +method.foo=1 weights.group_size=7 seed=-1"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve().parents[2] / "run.py"), *line.split()],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    head, *told = done.stderr.splitlines()
    assert head == "the configuration has 8 mistakes:"
    words = ["bits=w4z4 is not a label", "method.alpha is unknown; known: ", "rank=-1", "method.foo is unknown",
             "weights.group_size=7 does not divide", " seed=-1", "calibration.seed=-1", "method.seed=-1"]  # fmt: skip
    for word in words:
        assert sum(word in one for one in told) == 1, (word, told)


def test_a_value_that_cannot_be_set_hides_no_other_mistake() -> None:
    told = problems("tracker.tags.x=1", "seed=-1", "bits=w4a4,w4a8", "weights.group_size=100")
    for word in ("tracker.tags.x=1", "seed=-1", "bits=w4a4,w4a8", "weights.group_size=100"):
        assert any(one.startswith(word) for one in told), (word, told)


def test_known_keys_of_a_method_are_its_own_and_a_method_is_only_suggested() -> None:
    (told,) = problems("method=singlequant", "method.alpha=abc")
    assert "balance_strength" in told
    assert not re.search(r"\b(quarot|art_64_steps|fp16)\b", told)
    (told,) = problems("method=singlequant", "method.quarto.x=1")
    assert told == "method.quarto is unknown; did you mean quarot?"


def test_a_sweep_is_checked_job_by_job_and_each_mistake_told_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check(["method=rtn,nope", "bits=w4a4,w1a1", "seed=0,1", "weights.clip=17"], multirun=True)
    told = [re.split("[;:]", problem)[0] for problem in caught.value.problems]
    assert told == ["method=nope", "weights.clip=17", "bits=w1a1"]


@pytest.mark.slow
def test_a_sweep_without_m_says_so_and_with_it_counts_its_jobs() -> None:
    with pytest.raises(ConfigError, match="add -m"):
        check(["method=rtn,fp16"])
    assert check(["method=rtn,fp16", "bits=w4a4,w4a8,w3a3", "weights=rtn,gptq"], multirun=True) == 12
    assert check(["method=rtn", "hydra.mode=MULTIRUN", "seed=range(0,4)"]) == 4


def test_a_key_of_one_choice_only_is_judged_job_by_job() -> None:
    with pytest.raises(ConfigError, match=r"weights\.damping is unknown"):
        check([RTN, "weights=rtn,gptq", "weights.damping=0.1"], multirun=True)
    assert check([RTN, "weights=gptq", "weights.damping=0.1,0.2"], multirun=True) == 2


def test_empty_text_file_and_folder_for_a_file(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    assert "empty" in problems("calibration.text=mine", f"calibration.path={empty}")[0]
    (tmp_path / "folder").mkdir()
    for key in ("path", "dataset_path"):
        told = problems("task.perplexity.texts=[mine]", f"task.perplexity.{key}={tmp_path / 'folder'}")
        assert "this one is empty" in told[0]


def test_a_local_text_may_have_any_name_but_only_one(tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("words")
    settings = compose([RTN, f"task.perplexity.path={text}", "task.perplexity.texts=[mine]"])
    assert settings.task.perplexity is not None
    assert (settings.task.perplexity.texts, settings.task.perplexity.path) == (("mine",), text)
    assert "one file" in problems(f"task.perplexity.path={text}", "task.perplexity.texts=[a,b]")[0]


def test_model_folder_without_config_or_weights(tmp_path: Path) -> None:
    told = problems(f"model.path={tmp_path}")
    assert len(told) == 2
    assert "config.json" in told[0]
    assert "no weights" in told[1]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").touch()
    (told_bin,) = problems(f"model.path={tmp_path}")
    assert "pytorch_model.bin" in told_bin
    assert "safetensors" in told_bin
    (tmp_path / "model.safetensors").touch()
    assert compose([RTN, f"model.path={tmp_path}"]).model.path == str(tmp_path)
    assert "this is a file" in problems(f"model.path={tmp_path / 'config.json'}")[0]


def test_results_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is a file" in problems(f"paths.results={tmp_path}/file/runs")[0]
    assert "paths.results=/proc/runs" in problems("paths.results=/proc/runs")[0]
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        assert "Permission denied" in problems(f"paths.results={tmp_path}/closed/runs")[0]
    assert not (tmp_path / "runs").exists()
    compose([RTN, f"paths.results={tmp_path}/runs"])
    assert not (tmp_path / "runs").exists(), "checking must not make the folder"


def test_parse_names_missing_and_wrong_sections() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(OmegaConf.create({"model": "tiny", "seed": 0}))
    told = " | ".join(caught.value.problems)
    assert "model=tiny" in told
    for group in ("method", "bits", "weights", "activations", "kv_cache", "calibration", "task", "tracker", "paths"):
        assert f"{group} is missing" in told


def test_method_arguments_pass_through_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "fakes"))
    own = ["+method.steps=3", "+method.order=[art,urt]", "+method.inner={a: 1.5}"]
    settings = compose([RTN, "method._target_=fake_method.Typed", *own])
    assert settings.method.arguments == {"steps": 3, "order": ["art", "urt"], "inner": {"a": 1.5}}
    assert parse(OmegaConf.create(as_config(settings))) == settings


def test_importing_the_checks_imports_nothing_heavy() -> None:
    code = (
        "import sys; import sq.config.compose, sq.config.rules, sq.runs.sweep; "
        "heavy = ('torch', 'transformers', 'wandb', 'datasets', 'lm_eval', 'pandas', 'numpy'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_that_contradict_each_other_are_told_with_the_rest() -> None:
    told = problems("task=all", "model.placement=stream", "seed=-1")
    assert any("model.placement=memory" in problem for problem in told)
    assert len(told) == 3  # a calibration seed of -1 follows the seed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("model=random_tiny", ["task=perplexity", "random weights know no text", "task=speed or task=none"]),
        ("model=random_tiny task=zeroshot", ["task=zeroshot", "task=speed"]),
        ("model=random_tiny task=none model.name=llama", ["model.name=llama", "begin it with random_"]),
        ("model=random_tiny task=none model.path=owner/name", ["model.architecture", "owner/name", "give one"]),
        ("model=random_tiny task=none calibration=c4", ["calibration.text=c4", "allowed: random"]),
        ("model.path=random", ["model.architecture", "model=random_<shape>"]),
        ("calibration.text=random", ["calibration.text=random", "name a text"]),
        ("task.perplexity.texts=[random]", ["task.perplexity.texts=random"]),
        ("task=speed bits=w16a16", ["fake, packed, packed_graph", "W16A16KV16", "task.speed.kinds=[bf16,bf16_graph]"]),
        ("task=speed method=fp16", ["W16A16KV16", "2 to 8 bits"]),
        ("task=speed model.placement=stream", ["the whole model", "model.placement=memory"]),
        ("task=speed task.speed.kinds=[fast]", ["task.speed.kinds=fast", "packed_graph"]),
        ("task=speed task.speed.batches=[1,0]", ["task.speed.batches=[1, 0]", "at least 1"]),
        ("task=speed task.speed.batches=[4,4]", ["distinct"]),
        ("task=speed task.speed.warmup=0", ["task.speed.warmup=0"]),
    ],
)
def test_random_weights_and_speed_refuse_what_makes_no_sense(overrides: str, words: list[str]) -> None:
    told = problems(*overrides.split())
    assert len(told) == 1
    for word in words:
        assert word in told[0]


def test_speed_runs_no_reference_methods_and_full_precision_alone_needs_no_integers() -> None:
    settings = compose(["task=speed", "method=fp16", "task.speed.kinds=bf16", "task.speed.batches=2"])
    assert settings.reference_methods == ()
    assert settings.task.speed is not None
    assert (settings.task.speed.kinds, settings.task.speed.batches) == (("bf16",), (2,))


def test_planted_outliers_are_those_of_the_embedded_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    assert compose([RTN, f"model.path={tmp_path}"]).model.outliers == "none"
    assert compose([RTN]).model.outliers == "planted"
    (told,) = problems("model.outliers=planted", f"model.path={tmp_path}")
    assert told == f"model.outliers=planted is for the embedded model, {tmp_path} has its own; use none"


def test_a_tracker_that_cannot_write_is_told() -> None:
    (told,) = problems("tracker=offline", "tracker.dir=/proc/wandb")
    assert told.startswith("tracker.dir=/proc/wandb; allowed: a folder that can be written to")
    assert compose([RTN, "tracker=none", "tracker.dir=/proc/wandb"]).tracker.name == "none"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000; allowed: a whole number of 1 to 1000"),
        ({"num_attention_heads": 0}, "num_attention_heads=0; allowed"),
        ({"hidden_size": "64"}, "hidden_size=64; allowed"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "4 heads that 3 key-value heads do not divide"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan; allowed"),
        ([], "is no section of keys"),
    ],
)
def test_a_model_that_claims_what_none_has(tmp_path: Path, config: object, said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    (told,) = problems(f"model.path={tmp_path}")
    assert said in told


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, '{"a":' * 50 + "1" + "}" * 50, "{", "\x00"])
def test_a_config_that_is_nested_or_no_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "model.safetensors").touch()
    (told,) = problems(f"model.path={tmp_path}")
    assert "config.json" in told
    assert len(told) < 400
