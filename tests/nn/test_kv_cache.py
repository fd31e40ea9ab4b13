"""The int4 cache: generation is the same with it as with transformers' cache and as a plain forward."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import FAMILIES, SIZES, save_random
from models.quantized_attention import ids_of, quantized
from quantizers import activation_quantizer
from recipes import folded
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

import sq
from sq.baselines.quarot import QuaRot
from sq.errors import QuantizationError
from sq.formats.activation import ActivationQuantizer
from sq.formats.elements import SCHEMES, Scheme
from sq.nn import kv_layer
from sq.nn.attention import AttentionInput
from sq.nn.kv_cache import Int4Cache, int4_obstacle
from sq.nn.kv_layer import Int4Layer
from sq.nn.mask_runs import MaskRuns, causal
from sq.quantize.method import Method
from sq.rotation import Dense, random_orthogonal

OURS = folded(order=("orthogonal", "urt"))
QUAROT = QuaRot(residual="orthogonal", head="orthogonal", cross_head="none", down="none", keys="orthogonal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("llama")
    save_random(made, "llama")
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return quantized(folder, OURS, dtype=torch.float32)


def generated(model: PreTrainedModel, ids: Tensor, tokens: int = 6, **arguments: Any) -> Any:
    """`generate` as a dictionary, with the logits of every step in `steps` (B, tokens, vocab)."""
    arguments = {"attention_mask": torch.ones_like(ids), "do_sample": False, **arguments}
    made = model.generate(
        ids,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
        **arguments,
    )
    made.steps = torch.stack(made.logits, 1)
    return made


def assert_near(found: Tensor, expected: Tensor, bound: float = 1e-5) -> None:
    """To 1e-5 of the largest number: float32 sums in another order."""
    assert float((found - expected).abs().max()) <= bound * float(expected.abs().max())


@torch.no_grad()
def in_parts(model: PreTrainedModel, ids: Tensor, parts: list[int], cache: Cache, **arguments: Any) -> Tensor:
    """Logits of ids (B, S), forwarded in parts onto one cache."""
    pieces = ids.split(parts, dim=1)
    return torch.cat([model(piece, past_key_values=cache, **arguments).logits for piece in pieces], 1)


@pytest.mark.parametrize(
    ("family", "method"),
    [*((family, OURS) for family in FAMILIES), ("llama", QUAROT), ("mistral", None)],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "name", "rtn"),
)
@torch.no_grad()
def test_generate_takes_it_and_its_logits_are_those_of_a_plain_forward(
    family: str, method: Method | None, tmp_path: Path
) -> None:
    """Windows of 6 and 7 tokens are passed; 16 tokens, so the cache has grown or is full."""
    save_random(tmp_path, family)
    model, ids = quantized(tmp_path, method, queries=family == "qwen3", dtype=torch.float32), ids_of(2, 9)
    made = generated(model, ids, 8)
    ordinary = generated(model, ids, 8, cache_implementation="dynamic")
    assert type(made.past_key_values) is Int4Cache
    assert type(ordinary.past_key_values) is DynamicCache
    assert torch.equal(made.sequences, ordinary.sequences)
    assert_near(made.steps, ordinary.steps)
    assert_near(made.steps, model(made.sequences, use_cache=False).logits[:, 8:16])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("clip", [1.0, 0.8, "search"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole head", "group"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_held_keys_and_values_are_those_of_a_plain_forward_to_the_bit(
    scheme: Scheme, whole: bool, clip: Any, dtype: torch.dtype
) -> None:
    """Off zero as well: a head rounded as a group need not hold it. Growing copies what is there.

    The plain forward sees the same parts: a product of other shape may round a float32 key otherwise on some CPUs.
    """
    quantizer = activation_quantizer(4, scheme, clip, None if whole else 8)
    source = AttentionInput(Dense(random_orthogonal(8, 0), orthogonal=True), keys=quantizer, values=quantizer)
    layer = Int4Layer(source, MaskRuns(checked=True), None, None)
    generator = torch.Generator().manual_seed(0)
    key, value = (torch.randn(2, 3, 120, 8, generator=generator).to(dtype) for _ in range(2))
    value[:, 1] += 5
    plain = []
    for part in (slice(0, 50), slice(50, 51), slice(51, 120)):
        layer.update(key[:, :, part], value[:, :, part])
        plain.append(source(key[:, :, part], key[:, :, part], value[:, :, part])[1:])
    found = layer.dequantized(dtype)
    for held, expected in zip(found, zip(*plain, strict=True), strict=True):
        assert torch.equal(held, torch.cat(expected, dim=2))


@torch.no_grad()
def test_bfloat16(folder: Path) -> None:
    """Against float64 attention over the same rounded keys: bfloat16's 2^-8 of the largest value."""
    model = quantized(folder, OURS, dtype=torch.bfloat16)
    cache, ids, seen = Int4Cache(model), ids_of(2, 12), {}
    owner = model.model.layers[0].self_attn
    owner.o_proj.register_forward_pre_hook(lambda module, arguments: seen.update(found=arguments[0]))
    owner.attention_input.register_forward_hook(lambda module, arguments, out: seen.update(plain=out))
    stepwise = in_parts(model, ids, [8, 1, 1, 1, 1], cache)
    assert stepwise.dtype == torch.bfloat16
    found = seen["found"]
    model(ids, use_cache=False)
    query, key, value = (x.double() for x in seen["plain"])
    assert torch.equal(cache.layers[0].dequantized(torch.bfloat16)[0].double(), key)
    key, value = (x.repeat_interleave(3, 1) for x in (key, value))
    scores = torch.softmax(query[:, :, -1:] @ key.mT * owner.scaling, -1)
    expected = (scores @ value).transpose(1, 2).flatten(2)
    assert_near(found.double(), expected, 2.0**-7)


@torch.no_grad()
def test_left_padding(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row as it is alone, and as with transformers' cache; by the kernel alone, no code is read back."""
    monkeypatch.delattr(Int4Layer, "dequantized")
    short, long = ids_of(1, 5, 1), ids_of(1, 9, 2)
    ids = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.int64), short], 1), long])
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    made = generated(model, ids, attention_mask=mask)
    assert type(made.past_key_values) is Int4Cache
    assert_near(made.steps, generated(model, ids, attention_mask=mask, cache_implementation="dynamic").steps)
    for row, alone in enumerate((short, long)):
        assert_near(made.steps[row], generated(model, alone).steps[0])


@pytest.mark.parametrize("kind", ["a gap", "additive", "one a head"])
@torch.no_grad()
def test_a_mask_that_is_no_run_of_positions_is_taken_as_it_is(model: PreTrainedModel, kind: str) -> None:
    ids = ids_of(2, 8)
    mask = torch.ones(2, 1, 1, 8, dtype=torch.bool)
    mask[1, ..., 2:4] = False
    if kind == "additive":
        mask = torch.where(mask, 0.0, -3.0)
    if kind == "one a head":
        mask = mask.repeat(1, SIZES["num_attention_heads"], 1, 1)
        mask[0, 1, :, 5] = False
    caches = (Int4Cache(model), DynamicCache(config=model.config))
    for cache in caches:
        model(ids[:, :7], past_key_values=cache)
    found, expected = (model(ids[:, 7:], attention_mask=mask, past_key_values=cache).logits for cache in caches)
    assert_near(found, expected)
    assert float((found - model(ids).logits[:, 7:]).abs().max()) > 1e-3, "the mask did nothing"


@pytest.mark.parametrize("capacity", [None, 12, 40])
@torch.no_grad()
def test_any_division_into_parts(model: PreTrainedModel, capacity: int | None) -> None:
    """A prompt, one token, several onto a filled cache; a fixed capacity sees nothing beyond what is held."""
    ids = ids_of(2, 12)
    expected = model(ids, use_cache=False).logits
    cache = Int4Cache(model, capacity=capacity)
    for _ in range(2):  # the second time after a reset
        for parts in ([12], [1, 1, 10], [4, 4, 4], [5, 1, 3, 1, 2]):
            assert_near(in_parts(model, ids, parts, cache), expected)
            assert int(cache.get_seq_length()) == 12
            cache.reset()
            assert int(cache.get_seq_length()) == 0


@pytest.mark.parametrize("arguments", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=str)
@torch.no_grad()
def test_beam_search(model: PreTrainedModel, arguments: dict[str, Any]) -> None:
    ids = ids_of(2, 6)
    made, ordinary = (
        generated(model, ids, 8, output_scores=True, **arguments, **more)
        for more in ({}, {"cache_implementation": "dynamic"})
    )
    assert type(made.past_key_values) is Int4Cache
    assert torch.equal(made.sequences, ordinary.sequences)
    assert_near(made.sequences_scores, ordinary.sequences_scores)


@pytest.mark.parametrize("capacity", [None, 20])
@torch.no_grad()
def test_crop_and_the_batch_operations_do_what_transformers_cache_does(
    model: PreTrainedModel, capacity: int | None
) -> None:
    ids, more = ids_of(2, 9), ids_of(4, 2, 3)
    rows = torch.tensor([3, 0, 0, 2])
    found = []
    for cache in (Int4Cache(model, capacity=capacity), DynamicCache(config=model.config)):
        in_parts(model, ids, [7, 1, 1], cache)
        cache.crop(-3)
        cache.crop(0)
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(rows)
        found.append(in_parts(model, more, [1, 1], cache))
        cache.batch_select_indices(torch.tensor([2, 1]))
        found.append(in_parts(model, more[:2], [2], cache))
        assert int(cache.get_seq_length()) == 10
    assert_near(found[0], found[2])
    assert_near(found[1], found[3])


@torch.no_grad()
def test_cropped_to_nothing_and_uncropped_further_than_that(model: PreTrainedModel) -> None:
    ids, cache = ids_of(1, 6), Int4Cache(model)
    cache.crop(-1)
    in_parts(model, ids_of(1, 4, 5), [4], cache)
    cache.crop(-9)
    assert_near(in_parts(model, ids, [6], cache), model(ids).logits)
    with pytest.raises(QuantizationError, match="negative number"):
        cache.crop(3)


@torch.no_grad()
def test_what_lies_beyond_the_held_positions_may_be_nan(model: PreTrainedModel) -> None:
    """A cropped token that held NaN, say; several tokens read the whole capacity."""
    ids, cache = ids_of(2, 6), Int4Cache(model, capacity=9)
    in_parts(model, ids[:, :2], [2], cache)
    for layer in cache.layers:
        for side in (layer.arrays.keys, layer.arrays.values):
            side.scale[:, :, 2:] = torch.nan
    assert_near(in_parts(model, ids[:, 2:], [1, 3], cache), model(ids).logits[:, 2:])


@torch.no_grad()
def test_two_generations_taking_turns(model: PreTrainedModel) -> None:
    texts, caches = (ids_of(1, 10, 1), ids_of(3, 10, 2)), (Int4Cache(model), Int4Cache(model, capacity=16))
    found: list[list[Tensor]] = [[], []]
    for part in (slice(0, 6), *(slice(i, i + 1) for i in range(6, 10))):
        for text, cache, logits in zip(texts, caches, found, strict=True):
            logits.append(model(text[:, part], past_key_values=cache).logits)
    for text, logits in zip(texts, found, strict=True):
        assert_near(torch.cat(logits, 1), model(text, use_cache=False).logits)


@torch.no_grad()
def test_a_copy_goes_on_from_a_shared_prompt(model: PreTrainedModel) -> None:
    """transformers' way to reuse a prompt; quantizers and transforms are not copied."""
    prompt, cache = ids_of(1, 6), Int4Cache(model)
    model(prompt, past_key_values=cache)
    for seed in (1, 2):
        branch, text = copy.deepcopy(cache), torch.cat([prompt, ids_of(1, 3, seed)], 1)
        assert branch.layers[0].source is model.model.layers[0].self_attn.attention_input
        made = generated(model, text, past_key_values=branch)
        assert made.past_key_values is branch
        assert_near(made.steps, generated(model, text).steps)
    assert cache.get_seq_length() == 6


@pytest.mark.parametrize(("head_dim", "scheme"), [(64, "asymmetric"), (128, "asymmetric"), (64, "midrise")], ids=str)
@torch.no_grad()
def test_bytes_are_at_most_three_tenths_of_bfloat16(head_dim: int, scheme: Scheme, tmp_path: Path) -> None:
    save_random(tmp_path, "llama", head_dim=head_dim)
    model = quantized(tmp_path, head=activation_quantizer(4, scheme, group_size=head_dim), dtype=torch.bfloat16)
    cache = generated(model, ids_of(2, 10), 21).past_key_values
    positions = 2 * SIZES["num_hidden_layers"] * SIZES["num_key_value_heads"] * 30  # of two rows
    assert cache.layers[0].arrays.keys.scale.shape[2] == 30
    assert cache.nbytes == positions * 2 * (head_dim // 2 + 4 + (2 if scheme == "asymmetric" else 0))
    assert cache.nbytes <= 0.30 * positions * 2 * head_dim * 2


@torch.no_grad()
def test_memory_is_freed_without_the_garbage_collector(folder: Path) -> None:
    model = quantized(folder, dtype=torch.float32)
    gc.collect()
    gc.disable()
    try:
        made = generated(model, ids_of(1, 4))
        array = weakref.ref(made.past_key_values.layers[0].arrays.keys.codes)
        assert array() is not None
        del made
        assert array() is None, "the model holds the cache"
        cache = Int4Cache(model)
        gone = weakref.ref(model)
        del model
        assert gone() is None, "the hook or the cache holds the model"
        del cache
    finally:
        gc.enable()


@torch.no_grad()
def test_a_copied_model_generates_by_itself(model: PreTrainedModel) -> None:
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        cache = generated(other, ids_of(1, 4)).past_key_values
        assert cache.layers[0].source is other.model.layers[0].self_attn.attention_input


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"cache_implementation": "static"}, StaticCache),
        ({"past_key_values": DynamicCache()}, DynamicCache),
        ({"prompt_lookup_num_tokens": 2}, DynamicCache),
        ({"use_cache": False}, type(None)),
    ],
    ids=["static", "own", "assisted", "none"],
)
@torch.no_grad()
def test_what_the_caller_asks_for_is_respected(
    model: PreTrainedModel, arguments: dict[str, Any], kind: type[Any]
) -> None:
    ids = ids_of(1, 7)
    made = generated(model, ids, **arguments)
    assert type(made.past_key_values) is kind
    assert torch.equal(made.sequences, generated(model, ids).sequences)


def differing(**settings: Any) -> ActivationQuantizer:
    return activation_quantizer(**{"bits": 4, "scheme": "asymmetric", "group_size": 12, **settings})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"values": None}, "layer 1 leaves keys or values in 16 bits"),
        ({"keys": differing(bits=8)}, "layer 1: keys have 8 bits, and the cache has 4"),
        ({"keys": differing(clip=(0.9, 0.8))}, r"layer 1 rounds keys with clip=\(0.9, 0.8\)"),
        ({"values": differing(group_size=6)}, "values have a scale for every 6 features, not one for a head of 12"),
        ({"values": differing(clip=0.9)}, r"layer 1 rounds keys with clip=1.0, values with clip=0.9"),
        ({"values": differing(scheme="midrise")}, "keys are of scheme asymmetric, group 12, and values of midrise"),
    ],
    ids=["values alone", "8 bits", "two ends", "groups", "two clips", "two schemes"],
)
@torch.no_grad()
def test_other_grids_stay_in_transformers_cache(folder: Path, change: dict[str, Any], reason: str) -> None:
    model = quantized(folder, dtype=torch.float32)
    for name, quantizer in change.items():
        setattr(model.model.layers[1].self_attn.attention_input, name, quantizer)
    with pytest.raises(QuantizationError, match=reason):
        Int4Cache(model)
    made = generated(model, ids_of(1, 5))
    assert type(made.past_key_values) is DynamicCache
    assert_near(made.steps, model(made.sequences).logits[:, 4:10])


def test_models_that_are_not_ours_are_told_so(folder: Path) -> None:
    plain = save_random(folder.parent / "plain", "llama")
    assert "'sdpa', not 'sq_sdpa'" in str(int4_obstacle(plain))
    assert sq.Int4Cache is Int4Cache


class NoWaiting(TorchDispatchMode):
    """Fails where a GPU would be waited for: a tensor read by Python."""

    def __init__(self) -> None:
        super().__init__()
        self.excused = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::masked_select")
        assert self.excused or function._schema.name not in reads, f"{function} waits"
        return function(*args, **(kwargs or {}))

    @contextmanager
    def excuse(self) -> Iterator[None]:
        self.excused = True
        try:
            yield
        finally:
            self.excused = False


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@torch.no_grad()
def test_a_step_of_fixed_capacity_can_be_captured(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read by Python, nothing moves, and positions do not hang on what Python has counted."""
    save_random(tmp_path, family)
    model, ids = quantized(tmp_path, OURS, dtype=torch.float32), ids_of(2, 14)
    expected = model(ids, use_cache=False).logits
    cache = Int4Cache(model, capacity=16)
    in_parts(model, ids[:, :9], [8, 1], cache)
    waiting = NoWaiting()
    for name in ("kv4_append", "kv4_attention"):  # on a CPU they look at positions; on a GPU they do not
        monkeypatch.setattr(kv_layer, name, waiting.excuse()(getattr(kv_layer, name)))

    def addresses() -> list[int]:
        sides = [side for layer in cache.layers for side in (layer.arrays.keys, layer.arrays.values)]
        parts = [part for side in sides for part in side] + [layer.position for layer in cache.layers]
        return [part.data_ptr() for part in parts if part is not None]

    before = addresses()
    for step in range(9, 14):
        for layer in cache.layers:
            layer.count = 9  # a replayed graph runs no Python
        with waiting:
            logits = model(ids[:, step : step + 1], past_key_values=cache).logits
        assert_near(logits[:, 0], expected[:, step])
    cache.reorder_cache(torch.tensor([1, 0]))
    for back in (lambda: cache.crop(-2), lambda: cache.rewind(12)):
        back()
        assert cache.get_seq_length() == 12
        assert_near(in_parts(model, ids[[1, 0], 12:14], [1, 1], cache), expected[[1, 0], 12:14])
    assert addresses() == before


@torch.no_grad()
def test_a_padded_step_of_fixed_capacity_reads_a_mask_on_the_device(model: PreTrainedModel) -> None:
    ids, mask = ids_of(2, 10), torch.ones(2, 10, dtype=torch.int64)
    mask[0, :3] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    expected = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    cache, columns = Int4Cache(model, capacity=16), torch.arange(16)
    model(ids[:, :8], attention_mask=mask[:, :8], position_ids=positions[:, :8], past_key_values=cache)
    starts, shown = torch.tensor([3, 0]), torch.empty(2, 1, 1, 16, dtype=torch.bool)
    for step in (8, 9):  # in a buffer that stays where it is
        shown.copy_(((columns >= starts[:, None]) & (columns <= step))[:, None, None])
        own = positions[:, step : step + 1]
        logits = model(ids[:, step : step + 1], attention_mask=shown, position_ids=own, past_key_values=cache).logits
        assert_near(logits[:, 0], expected[:, step])


@torch.no_grad()
def test_generate_with_a_fixed_capacity_and_one_that_is_too_small(model: PreTrainedModel) -> None:
    ids = ids_of(2, 7)
    made = generated(model, ids, past_key_values=Int4Cache(model, capacity=12))
    assert_near(made.steps, generated(model, ids).steps)
    with pytest.raises(QuantizationError, match="holds 7 of 8 positions and 2 more"):
        in_parts(model, ids_of(1, 9), [7, 2], Int4Cache(model, capacity=8))
    with pytest.raises(QuantizationError, match="capacity is 0"):
        Int4Cache(model, capacity=0)


def test_masks_as_runs() -> None:
    runs, position = MaskRuns(checked=True), torch.tensor([4, 4])
    mask = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)[:, None, None]
    found = runs.of(mask, position)
    assert found is not None
    assert found.starts is not None
    assert (found.starts.tolist(), found.ends.tolist()) == ([1, 0], [3, 4])
    assert runs.of(mask, position) is found
    one = runs.of(mask[:1], position)
    assert one is not None
    assert one.ends.tolist() == [3, 3]
    for odd in (
        mask.float(),
        mask.expand(2, 3, 1, 4),
        torch.zeros_like(mask),
        mask & torch.tensor([1, 1, 0, 1]).bool(),
    ):
        assert runs.of(odd, position) is None
    everything = runs.of(None, position)
    assert everything is not None
    assert everything.starts is None
    assert causal(torch.tensor([3, 4]), 2, 5).int().tolist() == [
        [[[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]],
        [[[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]],
    ]
