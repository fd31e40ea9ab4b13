"""Many run directories in a second: real configs, invented numbers, and the project's own writer."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sq.config.compose import compose
from sq.config.parse import as_config
from sq.runs.results import Result, digests_of

METHODS = ("rtn", "quarot", "duquant", "smoothquant", "singlequant", "cat")
WINDOWS = 48


@cache
def _config(method: str, bits: str, weights: str, clip: str) -> dict[str, Any]:
    chosen = {"method": method, "bits": bits, "weights": weights, "activations.clip": clip, "model.path": "org/X"}
    return as_config(compose(["model=custom", *(f"{key}={value}" for key, value in chosen.items())]))


def write_synthetic(
    results: Path,
    model: str,
    method: str,
    *,
    bits: str = "w4a4",
    weights: str = "rtn",
    clip: str = "1.0",
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Path:
    """One finished run with KL by window; `arguments` join the method's, `fields` replace those of the record."""
    config = _config(method, bits, weights, clip)
    config = {**config, "seed": seed, "method": {**config["method"], **(arguments or {})}}
    config = {**config, "model": {**config["model"], "name": model}}
    quantizes = config["method"]["quantizes"]
    name = f"{model}-{method}-{bits}-{zlib.crc32(f'{weights} {clip} {seed} {arguments}'.encode()):08x}"
    folder = results / name
    folder.mkdir(parents=True)
    random = np.random.default_rng(zlib.crc32(name.encode()))
    kl = random.exponential(0.1, WINDOWS) * quantizes
    np.savez(folder / "windows.npz", **{"kl/pydoc": kl})
    mean = float(kl.mean())
    metrics: dict[str, float | None] = {"ppl/pydoc": 12.0 + mean, "kl/pydoc": mean, "model/bytes": 1e8}
    if quantizes:
        parts = {part: float(random.uniform(1, 50)) for part in ("capture", "transform", "weights")}
        metrics |= {f"quantize/{part}_seconds": seconds for part, seconds in parts.items()}
        metrics |= {"quantize/seconds": sum(parts.values()), "transform/multiply_adds": float(random.uniform(1e5, 1e7))}
    record: dict[str, Any] = {
        "run_id": name, "identity": "0" * 64, "status": "finished", "created": f"2026-01-01T00:00:{seed % 60:02}+00:00",
        "command": "python run.py", "git_commit": None, "environment": {"cpu": "any"}, "model": model, "method": method,
        "bits": "W16A16KV16" if not quantizes else f"{bits.upper()}KV16", "weights": weights if quantizes else "none",
        "activations": "symmetric" if quantizes else "none", "seed": seed, "config": config, "metrics": metrics,
        "files": digests_of(folder), "arithmetic": "fake" if quantizes else "none",
    }  # fmt: skip
    Result(**{**record, **fields}).write(folder)
    return folder


def write_many(results: Path, count: int) -> None:
    """`count` runs of two unknown models: methods, bits, rounders, clips and seeds."""
    made = 0
    for seed in range(count):
        for model in ("Unknown-1B", "Other-3B"):
            for method in METHODS:
                for bits, weights, clip in (("w4a4", "rtn", "1.0"), ("w4a4", "gptq", "site"), ("w4a8", "gptq", "1.0")):
                    if made == count:
                        return
                    write_synthetic(results, model, method, bits=bits, weights=weights, clip=clip, seed=seed)
                    made += 1
