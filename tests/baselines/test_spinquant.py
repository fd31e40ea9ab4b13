"""SpinQuant: its loss and gradients against transformers' own model and finite differences, and its training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import FAMILIES, random_model, save_random
from models.test_invariance import exact_norms  # noqa: F401
from quantizers import activation_quantizer, rounder, weight_quantizer
from torch import Tensor

from sq.baselines.spinquant import LEARNED, STATE, SpinQuant
from sq.errors import CheckpointError, QuantizationError, TrainingError
from sq.learn.cayley import skew
from sq.learn.rotated_model import RotatedModel
from sq.learn.rotations import Rotations
from sq.models.families import ModelDimensions
from sq.models.fold import fold_site, rotate_residual
from sq.models.stream import DecoderStream
from sq.quantize.method import LayerView
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe
from sq.quantize.training import Training
from sq.quantize.training_log import TRAINING, TrainingLog
from sq.rotation import Dense, Hadamard, PerHead, random_orthogonal

FOUR_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
FULL = Recipe()
W4A4 = Recipe(rounder("rtn", weight_quantizer(4, clip=1.0)), activation_quantizer(4))
KV4 = replace(W4A4, **{part: activation_quantizer(4, "asymmetric", group_size=12) for part in ("keys", "values")})
O_BY_HEAD = replace(W4A4, activations=activation_quantizer(4, "asymmetric"), site_groups={"o": 12})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A random Llama with a few loud channels, and windows that it wrote itself: rounding then costs loss."""
    folder = tmp_path_factory.mktemp("small")
    model = random_model("llama", **FOUR_HEADS)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, [3, 17]] *= 12
        model.lm_head.weight.mul_(2)
    model.save_pretrained(folder)
    torch.manual_seed(1)
    model.generation_config.eos_token_id = None
    start = torch.arange(5, 11)[:, None]
    ids = model.generate(start, attention_mask=start > 0, do_sample=True, max_new_tokens=23, top_k=0, pad_token_id=0)
    return folder, ids


def pipeline_of(
    folder: Path, ids: Tensor, method: SpinQuant, recipe: Recipe, log: TrainingLog | None = None, **stream: Any
) -> Pipeline:
    reader = DecoderStream(folder, **{"dtype": torch.float32, **stream})
    return Pipeline(reader, method, recipe, ids, batch=3, log=log)


def training_of(folder: Path, ids: Tensor, recipe: Recipe, dtype: torch.dtype) -> Training:
    return pipeline_of(folder, ids, SpinQuant(), recipe, dtype=dtype)._training()


def random_rotations(dimensions: ModelDimensions, dtype: torch.dtype = torch.float64) -> Rotations:
    heads = [random_orthogonal(dimensions.head_dim, seed) for seed in range(dimensions.layers)]
    return Rotations(random_orthogonal(dimensions.hidden, 99), torch.stack(heads)).to(dtype)


def gradients(model: RotatedModel, rotations: Rotations, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its Euclidean gradients in R1 and R2."""
    leaves = Rotations(rotations.residual.clone().requires_grad_(), rotations.heads.clone().requires_grad_())
    loss = model.loss(leaves, ids, 0)
    return (loss.detach(), *torch.autograd.grad(loss, (leaves.residual, leaves.heads)))


@pytest.mark.parametrize("family", FAMILIES)
def test_rotated_parameters_are_what_folding_makes(family: str, tmp_path: Path) -> None:
    """Folding writes W R1, R1^T W, values and biases by its own code; the same numbers, biases included."""
    save_random(tmp_path, family)
    training = training_of(tmp_path, torch.zeros(1, 2, dtype=torch.int64), FULL, torch.float64)
    rotations, down = random_rotations(training.dimensions), Dense(random_orthogonal(84, 5), orthogonal=True)
    model = RotatedModel(training, FULL, down=down)
    for index, block in enumerate(model.blocks):
        found = model.parameters(block, rotations.residual, rotations.heads[index])
        expected, family_of = training.block(index).layer, block.family
        rotate_residual(family_of, expected, Dense(rotations.residual, orthogonal=True))
        head = PerHead(rotations.heads[index].expand(training.dimensions.kv_heads, -1, -1))
        fold_site(family_of, expected, "o", head, training.dimensions.head_dim)
        out, inner = expected.get_submodule("self_attn.o_proj"), expected.get_submodule("mlp.down_proj")
        every = PerHead(rotations.heads[index].expand(training.dimensions.heads, -1, -1))
        out.weight.data = every(out.weight.data)
        inner.weight.data = down(inner.weight.data)
        for name, parameter in found.items():
            torch.testing.assert_close(parameter, expected.get_parameter(name), rtol=0, atol=1e-12, msg=name)
        linears = {name for names in family_of.linears.values() for name in names}
        assert {name.rpartition(".")[0] for name in found} == linears


@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize("family", FAMILIES)
def test_unrounded_loss_is_transformers_own_for_any_rotations_and_has_no_gradient_along_them(
    family: str, tmp_path: Path
) -> None:
    """The unrounded model is invariant: its Riemannian gradient is 0 while the Euclidean one is not."""
    model = save_random(tmp_path, family, tied=True).double()
    ids = torch.randint(0, 97, (2, 19), generator=torch.Generator().manual_seed(0))
    training = training_of(tmp_path, ids, FULL, torch.float64)
    rotated = RotatedModel(training, FULL, down=Dense(random_orthogonal(84, 5), orthogonal=True))
    rotations = random_rotations(training.dimensions)
    loss, residual, heads = gradients(rotated, rotations, ids)
    with torch.no_grad():
        assert float(loss) == pytest.approx(float(model(ids, labels=ids).loss), rel=1e-6)  # computed in float32
    assert float(skew(rotations.residual, residual).norm()) < 1e-10 * float(residual.norm())
    assert float(skew(rotations.heads, heads).norm()) < 1e-10 * float(heads.norm())
    assert float(residual.norm()) > 1e-3 < float(heads.norm())


@pytest.mark.usefixtures("exact_norms")
def test_gradients_match_finite_differences_off_the_manifold(tmp_path: Path) -> None:
    """f(R + h E) - f(R - h E) over 2 h, E random: R1 and R2 are then not orthogonal, and the loss depends on them."""
    save_random(tmp_path, "qwen2")
    ids = torch.randint(0, 97, (2, 15), generator=torch.Generator().manual_seed(0))
    training = training_of(tmp_path, ids, FULL, torch.float64)
    model, rotations = RotatedModel(training, FULL), random_rotations(training.dimensions)
    _, *found = gradients(model, rotations, ids)
    generator, h = torch.Generator().manual_seed(1), 1e-6
    for _ in range(3):
        e1 = torch.randn(rotations.residual.shape, generator=generator, dtype=torch.float64)
        e2 = torch.randn(rotations.heads.shape, generator=generator, dtype=torch.float64)
        for first, second in ((e1, 0 * e2), (0 * e1, e2)):
            sides = [
                model.loss(Rotations(rotations.residual + s * first, rotations.heads + s * second), ids, 0)
                for s in (h, -h)
            ]
            slope = float(sides[0] - sides[1]) / (2 * h)
            expected = float((found[0] * first).sum() + (found[1] * second).sum())
            assert slope == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("recipe", [W4A4, KV4, O_BY_HEAD], ids=["w4a4", "w4a4kv4", "o by head"])
def test_rounded_loss_is_that_of_the_model_which_the_pipeline_makes(recipe: Recipe, small: tuple[Path, Tensor]) -> None:
    """Trained on is what is deployed: the loss at R equals the cross-entropy of the assembled RTN model with R folded.

    1e-3: a product that is summed in another order falls on the other side of a rounding here and there.
    """
    folder, ids = small
    method = SpinQuant(steps=0)
    pipeline = pipeline_of(folder, ids, method, recipe)
    pipeline.prepare()
    with torch.no_grad():
        deployed = pipeline.stream.assemble(list(pipeline.layers()), pipeline.embeddings_and_head)(ids, labels=ids).loss
    training, dimensions = training_of(folder, ids, recipe, torch.float32), pipeline.stream.dimensions
    keys = Hadamard(dimensions.head_dim) if recipe is KV4 else None
    trained = RotatedModel(training, recipe, down=Hadamard(dimensions.intermediate), keys=keys)
    full = RotatedModel(training, FULL, down=Hadamard(dimensions.intermediate))
    rotations = method.start(dimensions).to(torch.float32)
    assert float(trained.loss(rotations, ids, 0)) == pytest.approx(float(deployed), rel=1e-3)
    assert float(deployed) > 1.02 * float(full.loss(rotations, ids, 0)), (
        "rounding must matter for this to mean anything"
    )


def trained(folder: Path, ids: Tensor, run: Path | None = None, recipe: Recipe = W4A4, **options: Any) -> SpinQuant:
    method = SpinQuant(**{"steps": 30, "batch": 3, "lr": 0.5, "clip_interval": 1, "checkpoint_interval": 10, **options})
    pipeline_of(folder, ids, method, recipe, TrainingLog(run, "spinquant")).prepare()
    return method


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / TRAINING).read_text().splitlines()]


@pytest.mark.slow
def test_training_lowers_its_loss_and_ends_orthogonal(small: tuple[Path, Tensor], tmp_path: Path) -> None:
    method = trained(*small, run=tmp_path, steps=40, schedule="cosine", batch=6)
    *steps, last = records(tmp_path)
    assert [record["step"] for record in steps] == list(range(40))
    losses = [record["loss"] for record in steps]
    assert sum(losses[-5:]) / 5 < losses[0] - 0.02
    assert all(record["step_r1"] == pytest.approx(record["lr"]) for record in steps if record["bound_r1"] == "lr")
    assert all(record["step_r1"] < record["lr"] for record in steps if record["bound_r1"] == "norm")
    assert all(record["orthogonality"] < 1e-4 for record in steps)
    assert last["step"] == 40
    assert last["projected_orthogonality"] < 1e-12
    assert method.learned is not None
    assert method.learned.residual.dtype == torch.float64
    assert method.learned.error() < 1e-6


def same(a: SpinQuant, b: SpinQuant) -> bool:
    assert a.learned is not None
    assert b.learned is not None
    return torch.equal(a.learned.residual, b.learned.residual) and torch.equal(a.learned.heads, b.learned.heads)


def test_same_seed_same_rotations_bit_for_bit(small: tuple[Path, Tensor]) -> None:
    once = trained(*small, steps=5)
    assert same(once, trained(*small, steps=5))
    assert same(once, trained(*small, steps=5, rerotate_dtype="float64")) is False
    assert not same(once, trained(*small, steps=5, seed=1))


def test_recomputed_layers_change_nothing_and_float64_products_little(small: tuple[Path, Tensor]) -> None:
    folder, ids = small
    training = training_of(folder, ids, W4A4, torch.float32)
    rotations = random_rotations(training.dimensions, torch.float32)
    kinds: dict[str, dict[str, Any]] = {"as is": {}, "recompute": {"recompute": True}}
    found = {name: gradients(RotatedModel(training, KV4, **kind), rotations, ids) for name, kind in kinds.items()}
    for a, b in zip(found["as is"], found["recompute"], strict=True):
        assert torch.equal(a, b)
    block = training.block(0)
    plain, exact = (
        RotatedModel(training, FULL, rerotate_dtype=dtype).parameters(block, rotations.residual, rotations.heads[0])
        for dtype in (torch.float32, torch.float64)
    )
    for name in plain:
        assert exact[name].dtype == torch.float32
        torch.testing.assert_close(plain[name], exact[name], rtol=1e-4, atol=1e-5)


class Interrupted(Exception):
    """What stops a training in its middle."""


@pytest.mark.slow
@pytest.mark.parametrize("stop", [6, 8, 12])
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(
    stop: int, small: tuple[Path, Tensor], tmp_path: Path
) -> None:
    """Clips are searched at every 5th step and states saved after every 4th, so that factors are held across them."""
    folder, ids = small
    recipe = replace(W4A4, weights=rounder("rtn", weight_quantizer(4)))
    options: dict[str, Any] = {"steps": 12, "batch": 3, "lr": 0.5, "clip_interval": 5, "checkpoint_interval": 4}

    def progress(text: str, done: int, total: int) -> None:
        if text == "rotations" and done == stop:
            raise Interrupted

    interrupted = TrainingLog(tmp_path / "a", "spinquant", progress)
    with pytest.raises(Interrupted):
        pipeline_of(folder, ids, SpinQuant(**options), recipe, interrupted).prepare()
    saved = (tmp_path / "a" / STATE).stat().st_mtime_ns
    resumed = trained(folder, ids, tmp_path / "a", recipe, **options)
    whole = trained(folder, ids, tmp_path / "b", recipe, **options)
    assert same(resumed, whole)
    assert records(tmp_path / "a") == records(tmp_path / "b")
    assert ((tmp_path / "a" / STATE).stat().st_mtime_ns == saved) == (stop == 12), "no step is taken after the last"


def test_state_of_other_settings_is_told_and_trained_anew(
    small: tuple[Path, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, ids = small
    trained(folder, ids, tmp_path, steps=2)
    with caplog.at_level(logging.WARNING, logger="sq"):
        again = trained(folder, ids.flip(1), tmp_path, steps=3)
    assert "other method, windows; this one starts anew" in caplog.text
    assert same(again, trained(folder, ids.flip(1), steps=3))
    assert len(records(tmp_path)) == 4


def test_force_trains_anew_whatever_was_saved(small: tuple[Path, Tensor], tmp_path: Path) -> None:
    folder, ids = small
    first = trained(folder, ids, tmp_path, steps=2)
    shown: list[tuple[str, int]] = []
    log = TrainingLog(tmp_path, "spinquant", lambda text, done, total: shown.append((text, done)), force=True)
    again = SpinQuant(steps=2, batch=3, lr=0.5, clip_interval=1)
    pipeline_of(folder, ids, again, W4A4, log).prepare()
    assert [done for text, done in shown if text == "rotations"] == [0, 1, 2]
    assert same(first, again)


def test_learned_rotations_are_saved_and_taken_again(
    small: tuple[Path, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, ids = small
    first = trained(folder, ids, tmp_path, steps=3)
    file = str(tmp_path / LEARNED)
    with caplog.at_level(logging.WARNING, logger="sq"):
        second = trained(folder, ids, steps=3, rotations=file)
    assert same(first, second)
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING, logger="sq"):
        other = trained(folder, ids, recipe=KV4, rotations=file)
    assert same(first, other)
    assert "were learned for" in caplog.text
    assert "'keys': '16 bits'" in caplog.text


def test_rotations_of_another_model_are_refused(small: tuple[Path, Tensor], tmp_path: Path) -> None:
    folder, ids = small
    trained(folder, ids, tmp_path, steps=0)
    save_random(tmp_path / "wider", "llama", hidden_size=64, **FOUR_HEADS)
    with pytest.raises(CheckpointError, match=r"R1 is \(60, 60\), needed is \(64, 64\)"):
        trained(tmp_path / "wider", ids, rotations=str(tmp_path / LEARNED))


@pytest.mark.parametrize(
    ("weights", "other", "asked", "expected"),
    [
        ("rtn", {"activations": 4}, "auto", ("4", "4", "16")),
        ("gptq", {"activations": 4}, "auto", ("16", "4", "16")),
        ("gptq", {"activations": 8, "keys": 4}, "auto", ("16", "8", "4")),
        ("gptq", {"keys": 4}, "auto", ("16", "16", "4")),
        ("gptq", {}, "auto", ("4", "16", "16")),
        ("gptq", {"activations": 4}, "w4a4", ("4", "4", "16")),
        ("rtn", {"activations": 4}, "w16a8", ("16", "8", "16")),
    ],
)
def test_what_is_rounded_in_training(
    weights: str, other: dict[str, int], asked: str, expected: tuple[str, str, str]
) -> None:
    quantizers = {part: activation_quantizer(bits) for part, bits in other.items()}
    recipe = Recipe(rounder(weights, weight_quantizer(4)), **quantizers)
    found = SpinQuant(train_bits=asked).trained_on(recipe)
    parts = (found.weight_quantizer, found.activations, found.keys)
    bits = (16 if part is None else part.format.bits for part in parts)
    assert tuple(map(str, bits)) == expected


def test_start_is_randomized_hadamards_that_follow_the_seed(dimensions_of: Callable[..., ModelDimensions]) -> None:
    dimensions = dimensions_of(hidden=32, head_dim=8)
    start, again, other = (SpinQuant(seed=seed).start(dimensions) for seed in (0, 0, 1))
    torch.testing.assert_close(start.residual.abs(), torch.full((32, 32), 32**-0.5, dtype=torch.float64))
    torch.testing.assert_close(start.heads.abs(), torch.full((2, 8, 8), 8**-0.5, dtype=torch.float64))
    assert start.error() < 1e-12
    assert not torch.equal(start.heads[0], start.heads[1])
    assert torch.equal(start.residual, again.residual)
    assert not torch.equal(start.residual, other.residual)


def test_only_down_is_online_and_keys_are_rotated(small: tuple[Path, Tensor]) -> None:
    method = trained(*small, steps=1)
    dimensions = DecoderStream(small[0]).dimensions
    view = LayerView(1, {}, {}, dimensions)
    transforms = method.layer_transforms(view)
    assert set(transforms) == {"o", "down"}
    assert transforms["o"].online is None
    assert isinstance(transforms["down"].online, Hadamard)
    assert isinstance(method.key_transform(view), Hadamard)
    assert method.learned is not None
    heads = transforms["o"].tokens(torch.eye(48, dtype=torch.float64), "o", dimensions)
    torch.testing.assert_close(heads, torch.block_diag(*[method.learned.heads[1]] * 4))
    residual = method.residual_rotation({}, dimensions)
    assert residual is not None
    torch.testing.assert_close(residual.matrix(), method.learned.residual)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"hidden_size": 66, "num_attention_heads": 2}, r"hidden size of 66 has no.*method\.residual=orthogonal"),
        ({"head_dim": 10}, r"o: a head_dim of 10 has no.*method\.head=orthogonal"),
        ({"intermediate_size": 50}, r"down: an intermediate size of 50 has no.*method\.down=orthogonal"),
    ],
)
def test_sizes_without_a_hadamard_name_the_option_that_works(sizes: dict[str, int], said: str, tmp_path: Path) -> None:
    save_random(tmp_path, "llama", **{**FOUR_HEADS, **sizes})
    ids = torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(QuantizationError, match=said):
        trained(tmp_path, ids)
    haar = {"residual": "orthogonal", "head": "orthogonal", "down": "orthogonal", "keys": "orthogonal"}
    assert trained(tmp_path, ids, steps=1, **haar).learned is not None


def test_training_that_overflows_names_step_and_setting(small: tuple[Path, Tensor], tmp_path: Path) -> None:
    model = random_model("llama", **FOUR_HEADS)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight *= 1e25
        model.model.layers[1].mlp.gate_proj.weight *= 1e25
    model.save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match=r"spinquant diverged: .* at step 0 with method\.lr=0\.5"):
        trained(tmp_path, small[1])


def test_rotations_are_asked_for_after_learning(dimensions_of: Callable[..., ModelDimensions]) -> None:
    with pytest.raises(QuantizationError, match="call learn first"):
        SpinQuant().residual_rotation({}, dimensions_of())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"steps": -1, "batch": 0}, r"steps=-1 \(at least 0\); batch=0 \(at least 1\)"),
        ({"schedule": "constant"}, r"schedule='constant' \(allowed: linear, cosine\)"),
        ({"residual": "none"}, r"residual='none' \(allowed: hadamard, orthogonal\)"),
        ({"down": True, "rerotate_dtype": "bfloat16"}, r"rerotate_dtype='bfloat16'.*down=True"),
        ({"lr": 0.0}, r"lr=0\.0 \(more than 0\)"),
        ({"lr": float("nan")}, r"lr=nan"),
        ({"rotations": "/no/such/R.bin"}, r"rotations='/no/such/R\.bin' \(a file that exists, or null to train\)"),
        ({"train_bits": "w4"}, r"bits=w4 is not a label; write w<format>a<format>"),
        ({"clip_interval": 0, "checkpoint_interval": 0}, r"clip_interval=0 .*checkpoint_interval=0"),
    ],
)
def test_options_out_of_range_are_all_told(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SpinQuant(**arguments)


def test_a_bfloat16_checkpoint_is_trained_in_float32(small: tuple[Path, Tensor]) -> None:
    """Weights, embedding and head lose 8 of 24 bits when read as bfloat16; their products are still float32."""
    folder, ids = small
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        model = RotatedModel(training_of(folder, ids, FULL, dtype), FULL)
        assert model.dtype == torch.float32
        losses.append(float(model.loss(random_rotations(model.dimensions, torch.float32), ids, 0)))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]
