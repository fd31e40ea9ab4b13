"""export=: what a format cannot say is told before anything is loaded, and the recipe that is named instead can."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sq.checkpoint.export import rules
from sq.config.compose import compose
from sq.errors import ConfigError
from sq.runs.runid import arithmetic, identity

pytestmark = pytest.mark.skipif(find_spec("compressed_tensors") is None, reason="pip install 'singlequant[export]'")


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    return caught.value.problems


def export(folder: Path, *overrides: str) -> tuple[str, ...]:
    return ("export=compressed-tensors", f"save_to={folder / 'out'}", *overrides)


# Overrides that cannot be exported, words of the reason, and what the message tells to write instead.
REFUSED = [
    ("method=singlequant", "online at every site", ["method=singlequant_export"]),
    ("method=singlequant_folded", "differs from layer to layer", ["+method.down=hadamard"]),
    ("method=singlequant_folded", "differs from layer to layer", ["+method.down=none"]),
    ("method.rank=8 method.mixing=block", "rank=8 and mixing=block", ["method.rank=0", "method.mixing=none"]),
    ("method=cat", "method=cat", ["method=singlequant_export"]),
    ("method=duquant", "method=duquant", ["method=singlequant_export"]),
    ("method=flatquant", "method=flatquant", ["method=singlequant_export"]),
    ("method=quarot", "across query heads", ["method.cross_head=none"]),
    ("method=fp16", "leaves it as it is", ["method=singlequant_export"]),
    ("activations=symmetric", "max|x| / 7.5 with codes -8..7", ["activations=full_range"]),
    ("activations=midrise", "the midrise grid", ["activations=full_range"]),
    ("activations.clip=site", "activations.clip=site", ["activations.clip=1.0"]),
    ("activations.clip=search", "no field for clips", ["activations.clip=1.0"]),
    ("activations.o_group=head", "activations.o_group=head", ["activations.o_group=null"]),
    ("weights.scheme=midrise", "halfway between codes", ["weights.scheme=symmetric"]),
    ("weights.scheme=asymmetric", "zero points", ["weights.scheme=symmetric"]),
    ("bits=w4a4kv4", "inside attention", ["bits=w4a4"]),
    ("bits=w4a3", "of 3 bits", ["bits=w4a4"]),
    ("bits=w16a4", "weights in 16 bits", ["bits=w4a4"]),
    ("bits=mxfp4 activations=symmetric", "1.75 times", ["bits=mxfp4_up"]),
    ("bits=nvfp4 activations=symmetric", "one second scale", ["bits=nvfp4_static"]),
    ("bits=wmxfp4anvfp4_static activations=symmetric", "no such product", ["bits=nvfp4_static"]),
    ("bits=wfp8afp8 activations=symmetric", "weights in fp8", ["bits=w4a16"]),
    ("bits=w4amxfp4_up activations=symmetric", "no such product", ["bits=mxfp4_up"]),
    ("task=speed", "two runs", ["task=none"]),
]


@pytest.mark.parametrize(("overrides", "reason", "instead"), REFUSED, ids=[f"{o} -> {i[0]}" for o, _, i in REFUSED])
def test_what_the_format_cannot_say(overrides: str, reason: str, instead: list[str], tmp_path: Path) -> None:
    """The message has the reason and the nearest recipe, and that recipe passes the check."""
    given = overrides.split()
    found = " ".join(problems(*export(tmp_path, *given)))
    assert reason in found
    for words in instead:
        name = words.partition("=")[0]
        if name not in ("task", "method") or "fp16" not in overrides:
            assert words in found or name == "task"
    changed = {words.lstrip("+").partition("=")[0] for words in instead}
    compose(export(tmp_path, *[one for one in given if one.partition("=")[0] not in changed], *instead))


@pytest.mark.parametrize(
    "overrides",
    [
        "",
        "method.down=none",
        "method=singlequant_folded +method.down=hadamard",
        "method=smoothquant",
        "method=rtn bits=w4a8 weights=gptq weights.group_size=64",
        "method=quarot method.cross_head=none method.down=none",
        "method=omniquant",
        "method=mrgptq method.block=32",
        "bits=w4a16",
        "bits=w4afp8 activations=symmetric",
        "bits=mxfp4_up activations=symmetric",
        "bits=wmxfp4a16",
        "bits=nvfp4_static activations=symmetric weights=gptq",
        "bits=wnvfp4_statica16",
        "activations.group_size=64",
    ],
)
def test_what_it_can(overrides: str, tmp_path: Path) -> None:
    settings = compose(export(tmp_path, *overrides.split()))
    assert settings.export == "compressed-tensors"


def test_static_second_scales_need_calibration_and_sites() -> None:
    grid = "activations=symmetric"
    assert "comes before calibration" in problems("method=spinquant", "bits=nvfp4_static", grid)[0]
    assert "attention has no sites" in problems("bits=w4a4kvnvfp4_static", "kv_cache=symmetric")[0]


def test_an_export_is_the_run_that_measures_its_quality(tmp_path: Path) -> None:
    """The same numbers, so the same identity: fake arithmetic, and nothing of the folder counts."""
    plain = compose(["method=singlequant_export", "activations=full_range"])
    exported = compose(export(tmp_path))
    assert identity(plain) == identity(exported)
    assert arithmetic(exported) == "fake"
    assert identity(compose(["method=singlequant_export"])) != identity(plain)


def test_a_folder_and_the_library_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems("export=compressed-tensors") == [
        "export=compressed-tensors needs a folder to write to: add save_to=FOLDER"
    ]
    monkeypatch.setattr(rules, "find_spec", lambda name: None)
    assert problems(*export(tmp_path)) == [
        "export=compressed-tensors needs the library compressed-tensors: pip install 'singlequant[export]'"
    ]
    assert "allowed: compressed-tensors" in problems("export=gguf")[0]


def test_references_of_an_export_are_not_exported(tmp_path: Path) -> None:
    from sq.runs.references import reference

    found: Any = reference(compose(export(tmp_path)), "rtn")
    assert (found.save_to, found.export, found.activations.name) == (None, None, "full_range")
