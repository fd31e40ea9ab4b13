from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from sq.data.windows import evaluation_windows
from sq.embedded import model_folder, planted
from sq.embedded.model_folder import COMMITTED_FOLDER, embedded_checkpoint
from sq.embedded.planted import Planting, load_planting, plant, save_planting
from sq.errors import CheckpointError


def random_model(heads: int = 4, groups: int = 2, layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=90, hidden_size=36, intermediate_size=44, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=groups, head_dim=6, initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.float64).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = torch.rand_like(parameter) + 0.5  # gains of ones would hide a forgotten fold
    return model


def random_planting(groups: int = 2, layers: int = 2, seed: int = 0) -> Planting:
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(36, 36, generator=generator, dtype=torch.float64)).Q
    up = torch.randn(layers, 44, generator=generator, dtype=torch.float64).exp()
    value = torch.randn(layers, groups * 6, generator=generator, dtype=torch.float64).exp()
    return Planting(rotation, up, value, "none")


@settings(max_examples=8, deadline=None)
@given(shape=st.sampled_from([(4, 4), (4, 2), (6, 2), (3, 1)]), strength=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]))
def test_logits_do_not_change(shape: tuple[int, int], strength: float) -> None:
    heads, groups = shape
    model = random_model(heads, groups)
    ids = torch.arange(40).view(2, 20)
    before = model(ids).logits
    model.load_state_dict(plant(model.state_dict(), random_planting(groups), heads=heads, strength=strength))
    error = (model(ids).logits - before).abs().max() / before.abs().max()
    assert error < 1e-5  # the weights were rounded to float32


def test_scales_and_rotation_arrive_where_they_belong() -> None:
    model, planting = random_model(), random_planting()
    old = model.state_dict()
    new = plant(old, planting, heads=4, strength=2.0)
    prefix = "model.layers.1."
    gain = old[prefix + "post_attention_layernorm.weight"]
    up = (old[prefix + "mlp.up_proj.weight"] * gain) @ planting.rotation * planting.up[1][:, None] ** 2
    assert torch.allclose(new[prefix + "mlp.up_proj.weight"].double(), up, rtol=1e-5, atol=1e-5)
    # Head 3 reads value head 1: its third channel is scaled by the ninth value scale.
    o = planting.rotation.T @ old[prefix + "self_attn.o_proj.weight"][:, 3 * 6 + 2] / planting.value[1][6 + 2] ** 2
    assert torch.allclose(new[prefix + "self_attn.o_proj.weight"][:, 3 * 6 + 2].double(), o, rtol=1e-4, atol=1e-5)
    assert torch.equal(new["model.norm.weight"], torch.ones(36))
    assert {tensor.dtype for tensor in new.values()} == {torch.float32}


def test_strength_zero_leaves_scales_alone() -> None:
    model, planting = random_model(), random_planting()
    flat = Planting(planting.rotation, torch.ones_like(planting.up), torch.ones_like(planting.value), "none")
    zero = plant(model.state_dict(), planting, heads=4, strength=0.0)
    one = plant(model.state_dict(), flat, heads=4, strength=1.0)
    assert all(torch.equal(zero[name], one[name]) for name in one)


def test_plantings_that_do_not_fit_are_refused() -> None:
    state = random_model().state_dict()
    with pytest.raises(ValueError, match=r"outside -10\.\.10"):
        plant(state, random_planting(), heads=4, strength=float("nan"))
    with pytest.raises(ValueError, match=r"run `python -m sq\.embedded\.planted` again"):
        plant(state, random_planting(layers=3), heads=4)


def test_saved_rotation_is_orthogonal_in_float64(tmp_path: Path) -> None:
    planting = random_planting()
    save_planting(planting, tmp_path / "planting.safetensors")
    loaded = load_planting(tmp_path / "planting.safetensors")
    identity = torch.eye(36, dtype=torch.float64)
    assert (loaded.rotation.T @ loaded.rotation - identity).abs().max() < 1e-13
    assert (loaded.rotation - planting.rotation).abs().max() < 1e-6
    assert loaded.weights_sha256 == "none"


def test_principal_axes_make_the_moment_diagonal() -> None:
    model = random_model().float()
    ids = torch.arange(80).view(4, 20)
    moment = planted._residual_moment(model, ids, batch=3)
    # The same from the hidden states that the model itself returns, plus each layer's stream behind attention.
    streams: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.input_layernorm.register_forward_hook(lambda _, args, __: streams.append(args[0]))
        layer.post_attention_layernorm.register_forward_hook(lambda _, args, __: streams.append(args[0]))
    model.model.norm.register_forward_hook(lambda _, args, __: streams.append(args[0]))
    with torch.no_grad():
        model(ids)
    unit = [x.flatten(0, 1).double() for x in streams]
    unit = [x / (x.pow(2).mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt() for x in unit]
    assert len(unit) == 5
    expected = sum(x.T @ x / 80 for x in unit) / 5
    assert torch.allclose(moment, expected, rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]


def test_scales_have_few_peaks_and_geometric_mean_one() -> None:
    scales = planted._scales(768, 0.25, 4, 2.25, torch.Generator().manual_seed(1))
    assert scales.log().mean().abs() < 1e-12
    assert (scales > 4).sum() == 4


@pytest.fixture
def small_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tiny"
    model = random_model().to(torch.bfloat16)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    save_planting(random_planting(), tmp_path / "planting.safetensors")
    monkeypatch.setattr(model_folder, "COMMITTED_FOLDER", folder)
    monkeypatch.setattr(model_folder, "PLANTING_FILE", tmp_path / "planting.safetensors")
    monkeypatch.setattr(model_folder, "load_planting", lambda: load_planting(tmp_path / "planting.safetensors"))
    return folder


def test_planted_folder_is_written_once_and_named_by_content(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = embedded_checkpoint(cache)
    other = embedded_checkpoint(cache, strength=0.5)
    assert first != other
    assert {path.name for path in cache.iterdir()} == {first.name, other.name}
    assert json.loads((first / "config.json").read_text())["dtype"] == "float32"
    assert {tensor.dtype for tensor in load_file(first / "model.safetensors").values()} == {torch.float32}
    assert (first / "tokenizer.json").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(model_folder, "plant", lambda *_, **__: pytest.fail("planted again although it was there"))
        assert embedded_checkpoint(cache) == first
    assert embedded_checkpoint(cache, outliers="none") == small_folder
    save_planting(random_planting(seed=1), tmp_path / "planting.safetensors")
    assert embedded_checkpoint(cache) != first


def test_an_interrupted_write_leaves_no_folder(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    cache = tmp_path / "cache"
    monkeypatch.setattr(model_folder, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        embedded_checkpoint(cache)
    assert list(cache.iterdir()) == []


def test_bad_arguments_and_missing_files(small_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allowed: planted, none"):
        embedded_checkpoint(tmp_path, outliers="some")
    with pytest.raises(ValueError, match="not a finite number"):
        embedded_checkpoint(tmp_path, strength=float("inf"))
    save_planting(random_planting(layers=5), tmp_path / "planting.safetensors")
    with pytest.raises(CheckpointError, match="outliers cannot be planted"):
        embedded_checkpoint(tmp_path / "cache")
    (small_folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors missing.*python -m sq\.embedded\.train"):
        embedded_checkpoint(tmp_path, outliers="none")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, PreTrainedModel, torch.Tensor]:
    cache = tmp_path_factory.mktemp("cache")
    folders = [embedded_checkpoint(cache, outliers=outliers) for outliers in ("none", "planted")]
    plain, with_outliers = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32).eval() for f in folders)
    ids = evaluation_windows("embedded", AutoTokenizer.from_pretrained(folders[1]), window=256, count=4).ids
    return plain, with_outliers, ids


def test_committed_model_keeps_its_logits(pair: tuple[PreTrainedModel, PreTrainedModel, torch.Tensor]) -> None:
    plain, with_outliers, ids = pair
    with torch.no_grad():
        before, after = plain(ids).logits, with_outliers(ids).logits
    assert (after - before).abs().max() / before.abs().max() < 1e-4
    assert (
        torch.equal(before.argmax(-1), after.argmax(-1))
        or (before.argmax(-1) == after.argmax(-1)).float().mean() > 0.999
    )


def test_committed_model_has_outliers(pair: tuple[PreTrainedModel, PreTrainedModel, torch.Tensor]) -> None:
    plain, with_outliers, ids = pair
    before, after = channel_ratios(plain, ids), channel_ratios(with_outliers, ids)
    # Layer 0 reads bare embeddings, whose variance is spread.
    for site, least, growth in (("q_proj", 6, 1.6), ("gate_proj", 6, 1.6), ("o_proj", 3, 2.0), ("down_proj", 8, 1.3)):
        a, b = before[site][1:].median(), after[site][1:].median()
        assert b > least, f"{site}: largest over median channel rms is {b:.1f}"
        assert b > growth * a, f"{site}: {a:.1f} without and {b:.1f} with planted outliers"


def test_planting_was_measured_on_the_committed_weights() -> None:
    planting = load_planting()
    assert planting.weights_sha256 == planted.weights_sha256(COMMITTED_FOLDER), "run `python -m sq.embedded.planted`"
    assert (COMMITTED_FOLDER / "model.safetensors").stat().st_size < 30e6


def channel_ratios(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Per site, per layer: largest over median rms of the channels entering it."""
    ratios: dict[str, list[torch.Tensor]] = {}
    handles = []
    for name, module in model.named_modules():
        site = name.split(".")[-1]
        if site in ("q_proj", "o_proj", "gate_proj", "down_proj"):

            def record(_: object, args: tuple[torch.Tensor, ...], site: str = site) -> None:
                rms = args[0].flatten(0, 1).pow(2).mean(0).sqrt()
                ratios.setdefault(site, []).append(rms.max() / rms.median())

            handles.append(module.register_forward_pre_hook(record))
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return {site: torch.stack(values) for site, values in ratios.items()}


def test_the_committed_planting_makes_what_the_numbers_were_measured_with(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4 if threads == 1 else 1)  # the folder is refused if they count
        folder = embedded_checkpoint(tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert (folder / model_folder.DIGEST).is_file()


def test_a_damaged_planted_folder_is_made_again(tmp_path: Path) -> None:
    folder = embedded_checkpoint(tmp_path)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert embedded_checkpoint(tmp_path) == folder
    content[len(content) // 2] ^= 1
    assert (folder / "model.safetensors").read_bytes() == content
    (folder / "tokenizer.json").unlink()
    embedded_checkpoint(tmp_path)
    assert (folder / "tokenizer.json").is_file()
