"""Every way a model folder can be unusable has its own clear error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models.checkpoints import random_model, save_random
from safetensors.torch import load_file, save_file

from sq.errors import CheckpointError
from sq.models.source import WeightSource, model_folder
from sq.models.stream import DecoderStream


def test_missing_folder_and_bad_name() -> None:
    with pytest.raises(CheckpointError, match="neither an existing folder nor a hub id"):
        model_folder("/no/such/folder")


def test_hub_model_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"owner/name.*model\.path=FOLDER"):
        model_folder("owner/name")


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        DecoderStream(tmp_path)


def test_folder_without_weights_names_other_formats(tmp_path: Path) -> None:
    random_model("llama").config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"no weights.*pytorch_model\.bin"):
        DecoderStream(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5], ids=["empty", "in the length", "in the header", "in the data"])
def test_truncated_file(tmp_path: Path, keep: float) -> None:
    save_random(tmp_path, "llama")
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="truncated"):
        DecoderStream(tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_or_inf_in_a_tensor_is_named(tmp_path: Path, bad: float) -> None:
    save_random(tmp_path, "llama")
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = bad
    save_file(weights, tmp_path / "model.safetensors")
    stream = DecoderStream(tmp_path, dtype=torch.float32)
    stream.layer(0)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight.*1 NaN or inf"):
        stream.layer(1)


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.2.self_attn.v_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.2\.self_attn\.v_proj"):
        DecoderStream(tmp_path).layer(2)


def test_wrong_shape_is_named(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] = torch.zeros(3, 4)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"down_proj.*\(3, 4\).*\(60, 84\)"):
        DecoderStream(tmp_path).layer(0)


def test_untied_head_that_is_missing(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="lm_head"):
        DecoderStream(tmp_path).embeddings_and_head()


def test_index_with_a_missing_shard_and_a_lost_tensor(tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path, max_shard_size="40KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    lost = dict(content, weight_map={**content["weight_map"], "extra.weight": "model-00001-of-00099.safetensors"})
    index.write_text(json.dumps(lost))
    with pytest.raises(CheckpointError, match="model-00001-of-00099"):
        WeightSource(tmp_path)
    present = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps(dict(content, weight_map={**content["weight_map"], "extra.weight": present})))
    with pytest.raises(CheckpointError, match=r"extra\.weight"):
        WeightSource(tmp_path)


def test_index_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{broken")
    with pytest.raises(CheckpointError, match="not a safetensors index"):
        WeightSource(tmp_path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 3])
def test_an_index_that_leads_out_of_its_folder(tmp_path: Path, name: object) -> None:
    save_random(tmp_path / "model", "llama")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {"model.norm.weight": name}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="which is no file of its folder"):
        WeightSource(tmp_path / "model")


@pytest.mark.parametrize("change", [{"num_hidden_layers": 10**9}, {"num_attention_heads": 0}, {"hidden_size": []},
                                    {"rope_parameters": {"rope_type": "unknown"}}, {"model_type": 5}])  # fmt: skip
def test_a_config_that_claims_what_no_decoder_has(tmp_path: Path, change: dict[str, object]) -> None:
    save_random(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError):
        DecoderStream(tmp_path)


def test_no_code_of_a_model_folder_is_run(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    auto = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C", "AutoTokenizer": "evil.C"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": auto}))
    DecoderStream(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": auto, "model_type": "other"}))
    with pytest.raises(CheckpointError):
        DecoderStream(tmp_path)
    assert not (tmp_path / "ran").exists()
