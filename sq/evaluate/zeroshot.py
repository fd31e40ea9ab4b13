"""Zero-shot accuracy through EleutherAI's lm-evaluation-harness, one cached result a task."""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sq.digest import is_sealed, sealed
from sq.errors import DataError, FileError
from sq.io import read_json, write_json

logger = logging.getLogger(__name__)

# Length-normalized accuracy where the peers' protocol (QuaRot, FlatQuant, DFRot) reports it; plain accuracy elsewhere.
PROTOCOL_METRIC = {
    **dict.fromkeys(("piqa", "hellaswag", "arc_easy", "arc_challenge"), "acc_norm"),
    **dict.fromkeys(("next_line", "docstring"), "acc_mutual_info"),  # of sq.embedded.tasks
}
STDERR_RESAMPLES = 100  # lm-eval bootstraps some metrics (perplexity of lambada); accuracies have a closed form


@dataclass(frozen=True)
class ZeroShot:
    """Scores of several tasks: `acc/<task>`, `acc_stderr/<task>` and `acc/mean`, all in 0..1.

    `versions` has "lm_eval", "transformers", and `task/<task>` (version), `metric/<task>` and `n_shot/<task>`.
    """

    metrics: dict[str, float]
    versions: dict[str, Any]


def zeroshot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    batch_size: int | str,
    max_length: int | None = None,
    limit: int | float | None = None,
    include_path: Path | None = None,
    metric: Mapping[str, str] | None = None,
    cache_dir: Path | None = None,
    cache_key: str = "",
    show: Callable[[str, int, int], None] = lambda text, done, total: None,
) -> ZeroShot:
    """Evaluate an instantiated model; tasks found in the cache are not run again.

    Every task runs with 0 shots and is written to `<cache_dir>/<task>-<hash>.json` as soon as it ends, so an
    interrupted evaluation goes on where it stopped. The hash covers cache_key, limit, max_length, library versions and,
    for local tasks, their YAML files. The mean is taken over unrounded values (some peers round to four digits before).

    Args:
        model: a causal language model on its device; it is put in eval mode.
        tasks: names of tasks or groups known to lm-eval, or those of `include_path`.
        batch_size: sequences per forward, or "auto".
        max_length: longest sequence in tokens; None takes the model's.
        limit: use only the first so many documents of a task (a share when below 1); None uses all.
        include_path: folder of task YAML files (see `sq.embedded.tasks`). When it holds all tasks, lm-eval's own are
            not even indexed and nothing is downloaded.
        metric: task -> lm-eval metric ("acc", "acc_norm", ...) where PROTOCOL_METRIC's choice is not wanted.
        cache_dir: folder of finished tasks; None caches nothing.
        cache_key: identifies model, weights and quantization; needed with cache_dir.
        show: called with a text, the requests answered and the requests in all.

    Raises:
        DataError: no task, an unknown one, one whose documents cannot be loaded, or one without its metric.
        ValueError: cache_dir without cache_key.
    """
    import lm_eval
    import transformers

    if not tasks:
        raise DataError("no zero-shot task was given; name at least one")
    if cache_dir is not None and not cache_key:
        raise ValueError("cache_dir needs cache_key, or results of different models would be mixed; give the run id")
    versions: dict[str, Any] = {"lm_eval": lm_eval.__version__, "transformers": transformers.__version__}
    key = [cache_key, limit, max_length, versions, _yaml_hash(include_path)]
    names = list(dict.fromkeys(tasks))
    results = {name: _read(_cache_file(cache_dir, name, key)) for name in names}
    if any(result is None for result in results.values()):
        with _quiet():
            from lm_eval.models.huggingface import HFLM

            manager = _task_manager(names, include_path)
            model.eval()
            harness = HFLM(
                model, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length, device=str(model.device)
            )
            for name in names:
                if results[name] is None:
                    with _bars_shown(show, f"zero-shot {name}"):
                        results[name] = _run(harness, manager, name, limit)
                    _write(_cache_file(cache_dir, name, key), results[name])
    metrics: dict[str, float] = {}
    for name in names:
        result = results[name]
        assert result is not None  # filled above
        chosen = (metric or {}).get(name, PROTOCOL_METRIC.get(name, "acc"))
        metrics[f"acc/{name}"], error = _score(name, result["scores"], chosen)
        if error is not None:
            metrics[f"acc_stderr/{name}"] = error
        versions |= {f"task/{name}": result["version"], f"metric/{name}": chosen, f"n_shot/{name}": result["n_shot"]}
    metrics["acc/mean"] = sum(metrics[f"acc/{name}"] for name in names) / len(names)
    return ZeroShot(metrics, versions)


def _task_manager(names: Sequence[str], include_path: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        if not Path(include_path).is_dir():
            raise DataError(f"include_path={include_path} is not a folder of lm-eval task YAML files")
        # lm-eval's own index takes seconds to build; local tasks alone take milliseconds.
        local = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(names) <= set(local.all_tasks):
            return local
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        near = {name: difflib.get_close_matches(name, manager.all_tasks, n=3) for name in unknown}
        hints = "; ".join(f"{name!r} (near: {', '.join(found) or 'none'})" for name, found in near.items())
        raise DataError(f"unknown zero-shot task {hints}. List all with `lm-eval ls tasks`, or give include_path")
    return manager


def _run(harness: Any, manager: Any, name: str, limit: int | float | None) -> dict[str, Any]:
    import lm_eval

    try:
        loaded = manager.load([name])
    except Exception as error:  # lm-eval, datasets, the hub and YAML raise their own kinds
        raise DataError(
            f"zero-shot task {name}: documents cannot be loaded ({type(error).__name__}: {error}). lm-eval reads "
            "them from the hub or its local cache (the cache alone under HF_HUB_OFFLINE=1); embedded tasks need neither"
        ) from error
    target = loaded["groups"].get(name) or loaded["tasks"].get(name)
    if target is None:
        raise DataError(f"{name!r} is a tag of tasks and has no score of its own; name {sorted(loaded['tasks'])}")
    output = lm_eval.simple_evaluate(
        model=harness,
        tasks=[target],
        task_manager=manager,
        num_fewshot=0,
        limit=limit,
        bootstrap_iters=STDERR_RESAMPLES,
        log_samples=False,
        # No sampling happens at 0 shots; the caller's generators stay as they are.
        random_seed=None,
        numpy_random_seed=None,
        torch_random_seed=None,
    )
    found = output["results"][name].items()
    return {
        "task": name,
        "scores": {key: float(value) for key, value in found if isinstance(value, (int, float))},
        "version": output["versions"].get(name),
        "n_shot": output["n-shot"].get(name, 0),
    }


def _score(name: str, scores: Mapping[str, float], metric: str) -> tuple[float, float | None]:
    # lm-eval's keys are "<metric>,<filter>"; the tasks of the protocol have the filter "none".
    value = scores.get(f"{metric},none")
    if value is None:
        allowed = sorted(key.split(",")[0] for key in scores if key.endswith(",none") and "_stderr" not in key)
        raise DataError(f"zero-shot task {name} has no metric {metric!r}; allowed: {', '.join(allowed) or 'none'}")
    return value, scores.get(f"{metric}_stderr,none")


def _yaml_hash(include_path: Path | None) -> str:
    if include_path is None:
        return ""
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(Path(include_path).rglob("*.y*ml")))).hexdigest()


def _cache_file(cache_dir: Path | None, name: str, key: Sequence[Any]) -> Path | None:
    if cache_dir is None:
        return None
    digest = hashlib.sha256(json.dumps([name, *key], sort_keys=True).encode()).hexdigest()[:16]
    return Path(cache_dir) / f"{name.replace('/', '_')}-{digest}.json"


def _read(path: Path | None) -> dict[str, Any] | None:
    if path is None or not path.is_file():
        return None
    try:
        result: dict[str, Any] = read_json(path)
        if not is_sealed(result):
            raise TypeError("it is not what was written")
    except (FileError, TypeError, AttributeError) as error:
        logger.warning("cached zero-shot result %s cannot be used (%s); evaluating again", path, error)
        return None
    return result


def _write(path: Path | None, result: dict[str, Any] | None) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, None if result is None else sealed(result))
    except OSError as error:
        logger.warning("zero-shot result %s was not written (%s); the next run evaluates again", path, error)


@contextmanager
def _bars_shown(show: Callable[[str, int, int], None], text: str) -> Iterator[None]:
    """Show what lm-eval's own bar would print: it offers no other way to hear how far it is."""
    from lm_eval.models import huggingface

    class Bar(huggingface.tqdm):  # type: ignore[misc]
        def display(self, *_: Any, **__: Any) -> bool:
            if self.total:
                show(text, self.n, self.total)
            return True

    show(text, 0, 1)  # until the requests are counted, the tasks are read
    before = huggingface.tqdm
    huggingface.tqdm = Bar
    try:
        yield
        show(text, 1, 1)
    finally:
        huggingface.tqdm = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide lm-eval's and datasets' progress bars and advice; errors are raised, not printed, so nothing is lost."""
    harness_log = logging.getLogger("lm_eval")
    level = harness_log.level
    harness_log.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        harness_log.setLevel(level)
