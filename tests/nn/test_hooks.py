"""What is put into a layer for a while is gone afterwards, whatever happens inside; one file alone puts it there."""

from __future__ import annotations

import ast
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import save_random
from quantizers import activation_quantizer
from torch import Tensor

import sq
from sq.models.families import SITES
from sq.models.stream import DecoderStream
from sq.nn.attention import AttentionInput
from sq.nn.hooks import (
    attention_input,
    mapped_sites,
    observed,
    set_attention_input,
    watched_sites,
    with_attention_input,
    without_quantizers,
)
from sq.quantize.apply import install_plan
from sq.quantize.method import LayerPlan


class Failed(Exception):
    pass


class Case:
    """The first layer of a random model, a batch for it, and what it gives."""

    def __init__(self, folder: Path) -> None:
        save_random(folder, "llama")
        self.stream = DecoderStream(folder, dtype=torch.float32)
        self.family, self.layer = self.stream.family, self.stream.layer(0)
        self.hidden = torch.randn(2, 7, self.stream.dimensions.hidden, generator=torch.Generator().manual_seed(0))
        self.plain = self.outputs()

    @torch.no_grad()
    def outputs(self) -> Tensor:
        return self.stream.forward(0, self.layer, self.hidden)

    def hooks(self) -> int:
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in self.layer.modules())


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def used(context: AbstractContextManager[None], inside: Callable[[], None], fails: bool) -> None:
    """Enter, act, and leave; with `fails` by way of an exception, which must come out."""

    def run() -> None:
        with context:
            inside()
            if fails:
                raise Failed

    if fails:
        with pytest.raises(Failed):
            run()
    else:
        run()


def cache_rounding() -> AttentionInput:
    quantizer = activation_quantizer(3, "asymmetric", group_size=12)
    return AttentionInput(None, None, quantizer, quantizer)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("before", [False, True], ids=["nothing before", "another before"])
@pytest.mark.parametrize("new", [False, True], ids=["none inside", "one inside"])
def test_what_was_in_front_of_attention_comes_back(case: Case, before: bool, new: bool, fails: bool) -> None:
    earlier = AttentionInput(None, None, activation_quantizer(2, group_size=12)) if before else None
    set_attention_input(case.family, case.layer, earlier)
    expected, names = case.outputs(), list(dict(case.layer.named_modules()))
    assert torch.equal(expected, case.plain) == (earlier is None)
    given = cache_rounding() if new else None

    def inside() -> None:
        assert attention_input(case.family, case.layer) is given
        assert torch.equal(case.outputs(), case.plain) == (given is None)

    used(with_attention_input(case.family, case.layer, given), inside, fails)
    assert attention_input(case.family, case.layer) is earlier
    assert list(dict(case.layer.named_modules())) == names
    assert torch.equal(case.outputs(), expected)


@pytest.mark.parametrize("fails", [False, True])
def test_watched_sites_show_each_input_once_and_are_let_go(case: Case, fails: bool) -> None:
    seen: dict[str, list[Tensor]] = {site: [] for site in SITES}
    expected: dict[str, Tensor] = {}
    for site, names in case.family.linears.items():
        last = case.layer.get_submodule(names[-1])
        handle = last.register_forward_pre_hook(lambda _, given, site=site: expected.update({site: given[0].clone()}))
        case.outputs()
        handle.remove()

    def inside() -> None:
        assert torch.equal(case.outputs(), case.plain)

    used(watched_sites(case.family, case.layer, {site: seen[site].append for site in SITES}), inside, fails)
    assert case.hooks() == 0
    case.outputs()
    for site in SITES:
        (found,) = seen[site]
        assert torch.equal(found, expected[site])


@pytest.mark.parametrize("fails", [False, True])
def test_mapped_sites_act_on_all_readers_and_are_let_go(case: Case, fails: bool) -> None:
    calls: list[str] = []

    def doubled(site: str) -> Callable[[Tensor], Tensor]:
        def apply(x: Tensor) -> Tensor:
            calls.append(site)
            return 2 * x

        return apply

    twice = Case.__new__(Case)
    twice.__dict__.update(case.__dict__, layer=case.stream.layer(0))
    with torch.no_grad():  # the same by hand: all linears of o and down with twice their weights
        for name in (name for site in ("o", "down") for name in case.family.linears[site]):
            twice.layer.get_submodule(name).weight.mul_(2)  # type: ignore[operator]

    def inside() -> None:
        torch.testing.assert_close(case.outputs(), twice.outputs())

    used(mapped_sites(case.family, case.layer, {site: doubled(site) for site in ("o", "down")}), inside, fails)
    assert calls == ["o", "down"]
    assert case.hooks() == 0
    assert torch.equal(case.outputs(), case.plain)


@pytest.mark.parametrize("fails", [False, True])
@torch.no_grad()
def test_observers_and_missing_quantizers_are_undone(case: Case, fails: bool) -> None:
    inputs = install_plan(case.family, case.stream.dimensions, case.layer, LayerPlan())
    quantizers = {site: activation_quantizer(bits) for bits, site in enumerate(SITES, start=3)}
    for site, found in inputs.items():
        found.quantizer = quantizers[site]
    around = cache_rounding()
    set_attention_input(case.family, case.layer, around)
    rounded, seen = case.outputs(), dict.fromkeys(SITES, 0)

    def count(site: str) -> Callable[[Tensor], None]:
        return lambda x: seen.update({site: seen[site] + 1})

    def watched() -> None:
        assert torch.equal(case.outputs(), rounded)

    def bare() -> None:
        torch.testing.assert_close(case.outputs(), case.plain)

    used(observed(inputs, {site: count(site) for site in SITES}), watched, fails)
    assert seen == dict.fromkeys(SITES, 1)
    assert all(found.observer is None for found in inputs.values())
    used(without_quantizers(case.family, case.layer), bare, fails)
    assert {site: found.quantizer for site, found in inputs.items()} == quantizers
    assert attention_input(case.family, case.layer) is around
    assert torch.equal(case.outputs(), rounded)
    assert seen == dict.fromkeys(SITES, 1)


def named(tree: ast.AST) -> list[int]:
    """Lines where `attention_input` is a string that is looked up, or an attribute."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Constant) and node.value == "attention_input")
        or (isinstance(node, ast.Attribute) and node.attr == "attention_input" and not _of_module(node))
    ]


def _of_module(node: ast.Attribute) -> bool:
    """`hooks.attention_input`, the function."""
    return isinstance(node.value, ast.Name) and node.value.id == "hooks"


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("getattr(owner, 'attention_input', None)", 1),
        ("owner.attention_input = new", 1),
        ("owner._modules.pop('attention_input')", 1),
        ("from sq.nn.hooks import attention_input\nattention_input(family, layer)", 0),
        ('"""Text about attention_input."""', 0),
    ],
)
def test_the_reader_of_sources_sees_what_it_should(source: str, lines: int) -> None:
    assert len(named(ast.parse(source))) == lines


def test_one_file_owns_what_stands_in_front_of_attention() -> None:
    """sq/nn/hooks.py sets it, sq/models/attention.py reads it, and no other file of the library names it."""
    root = Path(sq.__file__).parent
    found: dict[str, Any] = {
        str(path.relative_to(root)): named(ast.parse(path.read_text())) for path in sorted(root.rglob("*.py"))
    }
    assert len(found) > 100
    assert {file for file, lines in found.items() if lines} == {"nn/hooks.py", "models/attention.py"}
