"""Exported folders: transformers and compressed-tensors alone compute what our fake model does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import SIZES, save_random
from quantizers import rounder
from recipes import folded
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

pytest.importorskip("compressed_tensors", reason="pip install 'singlequant[export]'")

from sq.baselines.mrgptq import MrGptq
from sq.baselines.omniquant import OmniQuant
from sq.baselines.quarot import QuaRot
from sq.baselines.smoothquant import SmoothQuant
from sq.checkpoint.export.folder import ExportWriter
from sq.checkpoint.manifest import damaged_files, run_of
from sq.errors import CheckpointError, QuantizationError
from sq.formats.activation import ActivationQuantizer
from sq.formats.format import Format
from sq.formats.labels import format_of
from sq.formats.weight import WeightQuantizer
from sq.methods.yardsticks import RoundToNearest
from sq.models.stream import DecoderStream
from sq.nn.assemble import assemble
from sq.quantize.method import Method
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe

pytestmark = pytest.mark.slow

FOLDED = folded(order=("orthogonal", "urt"), down="none")
INT4, TOKENS = format_of("4"), format_of("4", "full_range")


@dataclass(frozen=True)
class Case:
    """What is exported: a family with a method and formats."""

    family: str
    method: Method = FOLDED
    weights: Format | None = INT4
    activations: Format | None = TOKENS
    sizes: dict[str, Any] = field(default_factory=dict)
    tied: bool = False
    rounder: str = "rtn"


WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_attention_heads": 4}
CASES = {
    "llama": Case("llama_bias"),
    "qwen2": Case("qwen2"),
    "qwen3": Case("qwen3", rounder="gptq"),
    "mistral": Case("mistral", RoundToNearest(), tied=True),
    "w4a8 in groups of 12": Case("llama", SmoothQuant(), format_of("4", group=12), format_of("8", "full_range")),
    "groups of both": Case("qwen3", FOLDED, format_of("4", group=12), format_of("4", "full_range", group=12)),
    "w4a16": Case("llama", activations=None, tied=True),
    "w3afp8": Case("llama", weights=format_of("3"), activations=format_of("fp8")),
    "w8a8": Case("qwen3", weights=format_of("8", "full_range"), activations=format_of("8", "full_range")),
    "mxfp4": Case("llama", FOLDED, format_of("mxfp4"), format_of("mxfp4_up"), WIDE),
    "nvfp4": Case("qwen3", FOLDED, format_of("nvfp4_static"), format_of("nvfp4_static"), WIDE),
    "nvfp4 weights": Case("llama", FOLDED, format_of("nvfp4_static"), None, WIDE),
    "omniquant": Case("qwen3", OmniQuant(epochs=1)),
    "quarot with a hadamard of 84": Case("qwen3", QuaRot(cross_head="none"), activations=None),
    "a hadamard at down": Case("qwen3", folded(order=("orthogonal", "urt"), down="hadamard")),
    "a hadamard everywhere": Case("llama", MrGptq(block=4)),
    "a stored matrix": Case("llama", MrGptq(block=12), activations=None),
}


def ids_of(count: int = 4, length: int = 12) -> Tensor:
    return torch.randint(0, SIZES["vocab_size"], (count, length), generator=torch.Generator().manual_seed(0))


def export(case: Case, folder: Path, original: Path, *, run: str = "a", clip: float = 1.0) -> PreTrainedModel:
    """Quantize, write to a folder and return the fake model."""
    stream = DecoderStream(original, dtype=torch.float32)
    weights = None if case.weights is None else rounder(case.rounder, WeightQuantizer(case.weights))
    activations = None if case.activations is None else ActivationQuantizer(case.activations, clip)
    writer = ExportWriter(folder, stream.config, stream.dtype, {"method": case.method.name}, run)
    pipeline = Pipeline(stream, case.method, Recipe(weights, activations), ids_of(), batch=2, coded=writer.write_layer)
    pipeline.prepare()
    layers = list(pipeline.layers())
    writer.finish(pipeline.embeddings_and_head)
    return assemble(stream, layers, pipeline.embeddings_and_head)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor], dict[str, Tensor]]:
    """The place of all cases, the logits of our models, and those that a process without this package computes."""
    place, ours, folders = tmp_path_factory.mktemp("exported"), {}, []
    for name, case in CASES.items():
        save_random(place / "original" / name, case.family, tied=case.tied, **case.sizes)
        folders.append(place / name.replace(" ", "-"))
        model = export(case, folders[-1], place / "original" / name)
        torch.save(ids_of(2, 9), folders[-1].with_suffix(".pt"))
        with torch.no_grad():
            ours[name] = model(ids_of(2, 9)).logits
    script = Path(__file__).with_name("load_exports.py")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(script), *map(str, folders), str(place / "logits.bin")]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return place, ours, torch.load(place / "logits.bin")


@pytest.mark.parametrize("name", CASES)
def test_transformers_alone_computes_what_our_model_does(exported: Any, name: str) -> None:
    _, ours, theirs = exported
    found, expected = theirs[name.replace(" ", "-")], ours[name]
    error = float((found - expected).norm() / expected.norm())
    assert error < 1e-3, f"{name}: logits differ by {error:.1e} of their norm"


@pytest.mark.parametrize("name", CASES)
def test_the_classes_that_engines_read_it_with_take_the_config(exported: Any, name: str) -> None:
    """vLLM parses the two parts of quantization_config with these classes; it refuses keys that they do not have."""
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus
    from compressed_tensors.transform import TransformConfig

    whole = json.loads((exported[0] / name.replace(" ", "-") / "config.json").read_text())
    config = whole["quantization_config"]
    assert whole["architectures"][0].endswith("ForCausalLM")
    assert (config["format"] == "int-quantized") == (name == "w8a8")
    assert set(config) <= {*QuantizationConfig.model_fields, "transform_config", "version"}
    parsed = QuantizationConfig.model_validate(config)
    assert parsed.quantization_status == QuantizationStatus.COMPRESSED
    (group,) = parsed.config_groups.values()
    case = CASES[name]
    assert group.weights.num_bits == case.weights.bits
    assert (group.input_activations is None) == (case.activations is None)
    online = TransformConfig.model_validate(config["transform_config"] or {"config_groups": {}}).config_groups
    assert bool(online) == ("hadamard" in name or "matrix" in name)
    for scheme in online.values():
        assert [one.location for one in scheme.apply] == ["input", "weight_input"]


def test_a_head_stays_tied_where_the_recipe_leaves_it_so(exported: Any) -> None:
    """A folded rotation takes the final norm's gain into the head, which parts it from the embedding."""
    place = exported[0]
    for name, tied in (("mistral", True), ("w4a16", False)):
        config = json.loads((place / name / "config.json").read_text())
        index = json.loads((place / name / "model.safetensors.index.json").read_text())
        assert config["tie_word_embeddings"] is tied
        assert ("lm_head.weight" in index["weight_map"]) is not tied


def test_no_matrix_is_stored_twice_under_one_name(exported: Any) -> None:
    config = json.loads((exported[0] / "a-stored-matrix" / "config.json").read_text())
    groups = config["quantization_config"]["transform_config"]["config_groups"]
    assert set(groups) == {"qkv", "o", "gate_up", "down"}
    assert {(one["type"], one["head_dim"]) for one in groups.values()} == {("random-hadamard", 12)}


def test_a_small_hadamard_is_stored_too(exported: Any) -> None:
    """vLLM's fused FP4 kernels read it; entries are +-1, sqrt(k) times those of the orthogonal matrix."""
    files = [load_file(file) for file in (exported[0] / "a-hadamard-everywhere").glob("*.safetensors")]
    stored = {name: tensor for file in files for name, tensor in file.items() if name.endswith("_input.weight")}
    assert len(stored) == 3 * 7
    assert {name.split(".")[-2] for name in stored} == {"hadamard_4_input"}
    for tensor in stored.values():
        torch.testing.assert_close(tensor @ tensor.T, 4 * torch.eye(4))
        assert set(tensor.flatten().tolist()) == {-1.0, 1.0}


def test_who_ignores_the_transforms_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_random(tmp_path / "original", "llama")
    export(CASES["w4a16"], tmp_path / "folded", tmp_path / "original")
    assert not caplog.records
    export(CASES["a stored matrix"], tmp_path / "online", tmp_path / "original")
    assert "transforms online (qkv, o, gate_up, down): vLLM applies them, transformers ignores them" in caplog.text


def test_a_folder_belongs_to_its_run(tmp_path: Path) -> None:
    save_random(tmp_path / "original", "llama")
    folder = tmp_path / "out"
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "left.safetensors").write_bytes(b"an interrupted run")
    export(CASES["w4a16"], folder, tmp_path / "original", run="one")
    assert (run_of(folder), damaged_files(folder)) == ("one", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original", "out"]
    assert not (folder / "left.safetensors").exists()
    with pytest.raises(CheckpointError, match="holds something else"):
        export(CASES["w4a16"], folder, tmp_path / "original", run="two")
    export(CASES["w4a16"], folder, tmp_path / "original", run="one")
    file = next(folder.glob("model-00002*"))
    file.write_bytes(file.read_bytes()[:-1])
    assert damaged_files(folder) == [f"{file.name} is not what was written"]


@pytest.mark.parametrize(
    ("method", "clip", "words"),
    [
        (FOLDED, 0.9, "layer 0, qkv has the clip 0.9"),
        (
            folded(order=("orthogonal", "urt")),
            1.0,
            r"layer 0, down: a Kronecker of 84 features .*method=singlequant_export",
        ),
        (folded(placement="online", order=("orthogonal",)), 1.0, r"layer 0, qkv: a Kronecker of 60 features"),
    ],
    ids=["a clip", "a rotation at down", "rotations everywhere"],
)
def test_a_layer_that_the_format_cannot_say_is_refused(method: Method, clip: float, words: str, tmp_path: Path) -> None:
    save_random(tmp_path / "original", "llama")
    with pytest.raises(QuantizationError, match=words):
        export(Case("llama", method), tmp_path / "out", tmp_path / "original", clip=clip)
    assert not (tmp_path / "out").exists()
