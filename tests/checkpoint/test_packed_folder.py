"""Packed checkpoints: what is written is what was quantized, transformers loads it, and damage is told."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models.checkpoints import FAMILIES, save_random
from packed_folders import METHOD, ids_of, recipe_of, write
from recipes import folded
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import sq
from sq.checkpoint.card import write_card
from sq.checkpoint.packed_folder import CheckpointWriter
from sq.errors import CheckpointError
from sq.models.stream import DecoderStream
from sq.nn.assemble import assemble
from sq.quantize.pipeline import Pipeline
from sq.rotation.serialize import describe, empty_transform
from sq.rotation.transform import Compose, Dense

pytestmark = pytest.mark.slow


def in_memory(original: Path, *, packed: bool) -> PreTrainedModel:
    stream = DecoderStream(original, dtype=torch.float32)
    pipeline = Pipeline(stream, METHOD, recipe_of(stream.dimensions.head_dim), ids_of(), batch=2, packed=packed)
    pipeline.prepare()
    return assemble(stream, list(pipeline.layers()), pipeline.embeddings_and_head)


def contents(folder: Path) -> dict[str, bytes]:
    """All that is of the model: not what the pass measured, times among it, and not the run that made it."""
    config = re.sub(rb'"(run|config_digest)": "\w*"', b"", (folder / "config.json").read_bytes())
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "quantization.json"}
    return {**files, "config.json": config}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint for all tests that only read it."""
    folder = tmp_path_factory.mktemp("saved")
    save_random(folder / "original", "llama")
    return write(folder / "original", folder / "packed")


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_transformers_loads_is_what_was_quantized(family: str, tmp_path: Path) -> None:
    save_random(tmp_path / "original", family, tied=True)
    folder = write(tmp_path / "original", tmp_path / "packed")
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = in_memory(tmp_path / "original", packed=True)
    ids = ids_of(2, 9)
    torch.testing.assert_close(model(ids).logits, expected(ids).logits, rtol=0, atol=0)
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert made.shape == (2, 13)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_whole_models_agree_but_for_single_codes(family: str, tmp_path: Path) -> None:
    """Median difference of the logits, 1e-3 of their rms: most tokens meet no code on an edge."""
    save_random(tmp_path, family)
    ids = ids_of(4, 12)
    fake, packed = (in_memory(tmp_path, packed=way)(ids).logits for way in (False, True))
    assert float((fake - packed).abs().median()) < 1e-3 * float(fake.square().mean().sqrt())


def test_save_load_save_is_identical_byte_for_byte(saved: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    first = contents(saved)
    for use in ("unused", "used"):
        again = sq.save_packed(model, tmp_path / use)
        second = contents(again)
        assert first.keys() == second.keys()
        assert [name for name in first if first[name] != second[name]] == []
        model(ids_of())  # joins the codes of q, k and v in one tensor, of which each holds a view


@pytest.mark.parametrize("used", [False, True])
def test_writing_a_layer_does_not_change_it(saved: Path, tmp_path: Path, used: bool) -> None:
    """Its file alone holds a tensor more, which keeps readers without this package from random weights."""
    model = in_memory(saved.parent / "original", packed=True)
    if used:
        model(ids_of())
    writer = CheckpointWriter(tmp_path / "packed", DecoderStream(saved.parent / "original").config, {})
    for index, layer in enumerate(model.model.layers):
        before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        storages = {name: tensor.data_ptr() for name, tensor in layer.state_dict().items()}
        text, buffers = repr(layer), dict(layer.named_buffers())
        writer.write_layer(index, layer)
        after = layer.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        assert {name: tensor.data_ptr() for name, tensor in after.items()} == storages
        assert dict(layer.named_buffers()).keys() == buffers.keys()
        assert repr(layer) == text
        (file,) = writer.part.glob(f"model-{index + 1:05d}-*")
        more = {"self_attn.q_proj.weight"} if index == 0 else set()
        assert set(load_file(file)) == {f"model.layers.{index}.{name}" for name in [*before, *more]}


def test_a_layer_that_is_read_back_is_the_layer_that_was_written(saved: Path, tmp_path: Path) -> None:
    stream = DecoderStream(saved.parent / "original", dtype=torch.float32)
    model = in_memory(saved.parent / "original", packed=True)
    writer = CheckpointWriter(tmp_path / "packed", stream.config, {})
    for index, layer in enumerate(model.model.layers):
        writer.write_layer(index, layer)
        again, _ = writer.read_layer(index, stream.meta_layer(index))
        expected, found = layer.state_dict(), again.state_dict()
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("used", [False, True])
def test_save_pretrained_keeps_every_tensor(saved: Path, tmp_path: Path, used: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    if used:
        model(ids_of())
    model.save_pretrained(tmp_path)
    own = {name: tensor for file in saved.glob("*.safetensors") for name, tensor in load_file(file).items()}
    theirs = {name: tensor for file in tmp_path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert own.keys() == theirs.keys()
    for name, tensor in own.items():
        assert torch.equal(tensor, theirs[name]), name
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.quantization_config.recipe["method"] == "test"


def test_what_save_pretrained_wrote_takes_a_card(saved: Path, tmp_path: Path) -> None:
    """transformers asks no quantizer for one: it is a call away, and from config.json alone."""
    model = AutoModelForCausalLM.from_pretrained(saved)
    assert set(model.model_tags) == {"singlequant", "quantized"}, "of the card that push_to_hub writes"
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "README.md").exists()
    write_card(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "| method | test |" in text
    assert "load_singlequant.py" not in text


def test_linears_take_at_most_27_percent_of_bfloat16(tmp_path: Path) -> None:
    """At sizes where a scale a row and the transforms' factors count for little: 1024 and 2048 features."""
    sizes = {"hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 16, "head_dim": 64}
    save_random(tmp_path / "original", "llama", **sizes, num_hidden_layers=1)
    folder = write(tmp_path / "original", tmp_path / "packed", folded(order=("orthogonal",)))
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    layers = {name for name in index if ".layers." in name}
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    packed = sum(tensors[name].nbytes for name in layers)
    linears = sum(2 * tensors[name].numel() * 2 for name in layers if name.endswith("weight_packed"))
    assert packed <= 0.27 * linears, packed / linears


def test_without_this_package_what_save_pretrained_wrote_does_not_load(saved: Path, tmp_path: Path) -> None:
    """Its config.json says nothing to others (tests/checkpoint/test_by_name.py has what does); one tensor does."""
    AutoModelForCausalLM.from_pretrained(saved).save_pretrained(tmp_path)
    code = f"from transformers import AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "singlequant" in done.stderr
    assert "q_proj.weight" in done.stderr


@pytest.mark.parametrize("order", ["import sq, transformers", "import transformers, sq"])
def test_importing_is_enough_in_either_order(saved: Path, order: str) -> None:
    code = f"{order}; print(type(transformers.AutoModelForCausalLM.from_pretrained({str(saved)!r}).lm_head).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Linear"


def test_importing_this_package_stays_light() -> None:
    code = "import sys, sq; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_interrupted_run_goes_on_and_ends_the_same(saved: Path, tmp_path: Path) -> None:
    original = saved.parent / "original"
    write(original, tmp_path / "packed", stop=2)
    assert not (tmp_path / "packed").exists()
    kept = tmp_path / "packed.part" / "model-00002-of-00004.safetensors"
    before = kept.stat().st_mtime_ns
    folder = write(original, tmp_path / "packed")
    assert (folder / kept.name).stat().st_mtime_ns == before, "a finished layer was written again"
    assert contents(folder) == contents(saved)
    assert not (tmp_path / "packed.part").exists()


def test_another_recipe_does_not_take_over_what_was_left(saved: Path, tmp_path: Path) -> None:
    original = saved.parent / "original"
    write(original, tmp_path / "packed", stop=2, bits=3)
    assert contents(write(original, tmp_path / "packed")) == contents(saved)


def test_a_folder_of_another_run_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not empty and holds the checkpoint of run a4, and this is run b4"):
        write(saved.parent / "original", saved, run="b")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty and holds something else"):
        write(saved.parent / "original", tmp_path)


def test_a_finished_folder_gives_its_layers_and_reports_to_the_run_that_made_it(saved: Path, tmp_path: Path) -> None:
    folder, stream = tmp_path / "packed", DecoderStream(saved.parent / "original", dtype=torch.float32)
    shutil.copytree(saved, folder)
    (folder / "layer-00000.json").write_text("{}")  # a kill right behind the rename leaves these
    writer = CheckpointWriter(folder, stream.config, {"method": "test", "bits": 4}, "a4")
    assert writer.finished
    assert not (folder / "layer-00000.json").exists()
    recipe = recipe_of(stream.dimensions.head_dim)

    def saved_layer(index: int) -> object:
        return writer.read_layer(index, stream.meta_layer(index))

    again = Pipeline(stream, METHOD, recipe, ids_of(), batch=2, packed=True, saved=saved_layer)  # type: ignore[arg-type]
    again.prepare()
    list(again.layers())
    first = Pipeline(stream, METHOD, recipe, ids_of(), batch=2, packed=True)
    first.prepare()
    list(first.layers())
    for name in ("sites", "layers", "packed_bytes", "full_bytes", "macs", "bits_per_weight"):
        assert getattr(again.record, name) == getattr(first.record, name), name
    assert again.record.seconds["weights"] > 0


@pytest.mark.parametrize("name", ["model-00002-of-00004.safetensors", "quantization.json", "generation_config.json"])
def test_a_finished_folder_that_lost_or_broke_a_file_is_made_again(saved: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "packed"
    for damage in (Path.unlink, flip):
        shutil.copytree(saved, folder, dirs_exist_ok=True)
        damage(folder / name)  # type: ignore[operator]
        assert contents(write(saved.parent / "original", folder)) == contents(saved)
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["model-00001-of-00004.safetensors", "layer-00001.json"])
def test_what_is_damaged_of_an_interrupted_run_is_made_again(saved: Path, tmp_path: Path, name: str) -> None:
    write(saved.parent / "original", tmp_path / "packed", stop=2)
    flip(tmp_path / "packed.part" / name)
    assert contents(write(saved.parent / "original", tmp_path / "packed")) == contents(saved)


def test_other_weights_do_not_take_over_what_was_left(saved: Path, tmp_path: Path) -> None:
    """The run's identity, which holds the content of the weights, is that of the folder."""
    write(saved.parent / "original", tmp_path / "packed", stop=2, run="b")
    kept = tmp_path / "packed.part" / "model-00001-of-00004.safetensors"
    before = kept.stat().st_mtime_ns
    folder = write(saved.parent / "original", tmp_path / "packed")
    assert (folder / kept.name).stat().st_mtime_ns != before


STEPS = ("_save", "_write_index", "_described", "_tidy")


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_between_two_steps_of_finishing_is_completed_by_the_next_run(
    saved: Path, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    original, done = getattr(CheckpointWriter, step), []

    def die(*args: object) -> object:
        if step == "_save" and len(done) < 3:  # of the layers
            done.append(1)
            return original(*args)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointWriter, step, die)
        with pytest.raises(Killed):
            write(saved.parent / "original", tmp_path / "packed")
    folder = write(saved.parent / "original", tmp_path / "packed")
    assert contents(folder) == contents(saved)
    assert not (tmp_path / "packed.part").exists()


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def _drop(folder: Path) -> None:
    path = folder / "model-00002-of-00004.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.down_proj.weight_scale"]
    save_file(tensors, path, metadata={"format": "pt"})


def _reshape(folder: Path) -> None:
    path = folder / "model-00001-of-00004.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight_packed"] = torch.zeros(84, 29, dtype=torch.uint8)
    save_file(tensors, path, metadata={"format": "pt"})


def _truncate(folder: Path) -> None:
    path = folder / "model-00003-of-00004.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _foreign(folder: Path) -> None:
    path = folder / "model-00003-of-00004.safetensors"
    save_file({**load_file(path), "model.layers.7.extra": torch.zeros(2)}, path, metadata={"format": "pt"})


def _edit(folder: Path, change: dict[str, object], layer: bool = False) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    part = config["quantization_config"]
    (part["layers"][0]["linears"]["mlp.up_proj"] if layer else part).update(change)
    path.write_text(json.dumps(config))


def _as_format(folder: Path, data: dict[str, object]) -> None:
    _edit(folder, {"format": data}, layer=True)


def integers(bits: int) -> dict[str, object]:
    return {"bits": bits, "scheme": "symmetric", "group": None}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_drop, r"'model\.layers\.1\.mlp\.down_proj\.weight_scale' is missing"),
        (_reshape, r"weight_packed' has shape \(84, 29\), its config needs \(84, 30\)"),
        (_truncate, "truncated or not a safetensors file"),
        (_foreign, r"'model\.layers\.7\.extra' belongs to another model"),
        (lambda folder: _edit(folder, {"format": 9, "version": "9.9"}), "format 9, written by version 9.9"),
        (lambda folder: _edit(folder, {"layers": []}), "describes 0 layers"),
        (
            lambda folder: _edit(folder, {"format": integers(8)}, layer=True),
            r"weight_packed' has shape \(84, 30\).*\(84, 60\)",
        ),
        (lambda folder: _as_format(folder, integers(11)), "cannot be used.*integers of 11 bits"),
        (
            lambda folder: _edit(folder, {"format": {"name": "nf4"}}, layer=True),
            "cannot be used.*format 'nf4' is unknown",
        ),
        (lambda folder: _edit(folder, {"shape": [84, 61]}, layer=True), r"mlp\.up_proj has shape \(84, 61\)"),
    ],
    ids=["missing", "shape", "truncated", "foreign", "format", "layers", "other bits", "no bits", "no format", "sizes"],
)
def test_damage_is_refused_with_the_reason(
    saved: Path, tmp_path: Path, damage: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests see it, and without them what is read does."""
    folder = tmp_path / "damaged"
    shutil.copytree(saved, folder)
    damage(folder)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=r"is damaged: .*(was changed|not what was written)|format 9"):
        AutoModelForCausalLM.from_pretrained(folder)
    monkeypatch.setenv("SINGLEQUANT_UNCHECKED", "1")
    with pytest.raises(CheckpointError, match=said):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_flipped_bit_of_any_file_and_a_changed_number_of_the_config_are_told(saved: Path, tmp_path: Path) -> None:
    for number, file in enumerate(sorted(saved.glob("*.safetensors"))):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        flip(folder / file.name)
        with pytest.raises(CheckpointError, match=f"{file.name} is not what was written"):
            AutoModelForCausalLM.from_pretrained(folder)
    for key, value in (("rms_norm_eps", 1e-4), ("rope_parameters", {"rope_type": "default", "rope_theta": 5e5})):
        folder = tmp_path / key
        shutil.copytree(saved, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(CheckpointError, match=r"config\.json was changed"):
            AutoModelForCausalLM.from_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({**config, "use_cache": False, "transformers_version": "9"}))
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("where", ["recipe", "files", "layers", "config_digest"])
def test_a_config_that_lost_a_key_is_told(saved: Path, tmp_path: Path, where: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(saved, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["x" + where] = config["quantization_config"].pop(where)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"class": "sq.kernels.bench.__main__.X"},
        {"class": "sq.rotation.transform.Transform"},
        {"class": "os.system"},
        {"attributes": {"forward": 1}},
        {"attributes": {"__class__": "x"}},
        {"factors": {"r1": ["complex64", [2, 2]]}},
    ],
)
def test_a_transform_of_a_file_is_one_of_the_closed_list(change: dict[str, object]) -> None:
    description = describe(Dense(torch.eye(3), orthogonal=True))
    with pytest.raises(CheckpointError, match="cannot be built"):
        empty_transform({**description, **change})
    deep = description
    for _ in range(20):
        deep = {**describe(Compose([Dense(torch.eye(3), orthogonal=True)])), "parts": [deep]}
    with pytest.raises(CheckpointError, match="cannot be built"):
        empty_transform(deep)


def test_no_path_of_the_machine_is_in_a_packed_config(saved: Path) -> None:
    assert str(saved.parent) not in (saved / "config.json").read_text()
