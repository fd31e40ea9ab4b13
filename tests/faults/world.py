"""A small model, a text, and commands on them in a process of their own that may be killed."""

from __future__ import annotations

import io
import json
import os
import resource
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from models.checkpoints import save_random
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

import sq.analysis.report
import sq.analysis.tables
import sq.checkpoint.hf
import sq.cli.generate
import sq.runs.execute
from sq.embedded.model_folder import committed_folder

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0  # behind which a command counts as stuck; one takes about a second
STEPS = ("replace", "fsync", "rename", "unlink", "mkdir", "rmdir")  # of os, at which a process can be killed


@dataclass
class Done:
    """How a command ended: its status (negative: the signal that ended it; None: stuck), output and steps."""

    status: int | None
    out: str
    err: str
    steps: int = 0

    @property
    def traceback(self) -> bool:
        """Whether it showed one to its user; run.py keeps those of failed runs in their result.json."""
        return "Traceback (most recent call last)" in self.err + self.out


@dataclass
class World:
    """A folder with a model and a text, and what undisturbed runs on them measure."""

    folder: Path
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)  # by kind of run
    steps: dict[str, int] = field(default_factory=dict)
    said: str = ""  # what the packed model generates

    def words(self, kind: str, results: Path, *, model: Path | None = None) -> list[str]:
        """The command line of a run of a kind: "plain", "packed" or "sweep"."""
        text = self.folder / "text.txt"
        words = [
            "run.py", "model=custom", f"model.path={model or self.folder / 'model'}", "calibration.text=mine",
            f"calibration.path={text}", "task.perplexity.texts=[mine]", f"task.perplexity.path={text}",
            "task.perplexity.count=4", "model.window=32", "model.calibration_tokens=256", "tracker=none",
            f"paths.cache={results.parent / 'cache'}", f"paths.results={results}",
        ]  # fmt: skip
        if kind == "sweep":
            return [words[0], "-m", *words[1:], "method=rtn,quarot", f"hydra.sweep.dir={results.parent / 'sweep'}"]
        words += ["method=quarot", "reference_methods=[]"]
        return [*words, f"save_to={results.parent / 'packed'}"] if kind == "packed" else words

    def measured(self, results: Path) -> dict[str, float]:
        """Metrics of all finished runs of a results folder that are no times and no memory; run/metric -> value."""
        found: dict[str, float] = {}
        for path in sorted(results.glob("*/result.json")):
            record = json.loads(path.read_text())
            name = f"{record['method']}-{record['arithmetic']}"
            found[f"{name}/status"] = float(record["status"] == "finished")
            counted = {key: v for key, v in record["metrics"].items() if not key.startswith("quantize/")}
            found |= {f"{name}/{key}": value for key, value in counted.items()}
            found[f"{name}/sites"] = float(len(record["extras"].get("sites", ())))
        return found


def make_world(folder: Path) -> World:
    """The model is better than guessing: its head knows how often each token comes."""
    model, tokenizer = folder / "model", PreTrainedTokenizerFast.from_pretrained(committed_folder())
    save_random(model, "llama", vocab_size=len(tokenizer), num_hidden_layers=2)
    tokenizer.save_pretrained(model)
    text = " ".join(f"{word} is number {number} of the words." for number, word in enumerate(["fault", "held"] * 400))
    (folder / "text.txt").write_text(text)
    tensors = load_file(model / "model.safetensors")
    counts = torch.bincount(torch.tensor(tokenizer(text)["input_ids"]), minlength=len(tokenizer)).float()
    direction = torch.ones(tensors["lm_head.weight"].shape[1])
    tensors["model.embed_tokens.weight"] += 4 * direction
    tensors["lm_head.weight"] = 0.3 * tensors["lm_head.weight"] + (counts + 0.1).log()[:, None] * direction / 16
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    world = World(folder)
    for kind in ("plain", "packed", "sweep"):
        place = folder / kind
        done = command(world.words(kind, place / "runs"), place)
        assert done.status == 0, done.err
        world.metrics[kind], world.steps[kind] = world.measured(place / "runs"), done.steps
    said = generate(folder / "packed" / "packed", folder)
    assert said.status == 0, said.err
    world.said = said.out
    return world


def command(words: Sequence[str], place: Path, *, kill_at: int = 0, disk: int = 0) -> Done:
    """Run a command line in a fork of this process; its first word is the program.

    Args:
        place: folder for what it prints.
        kill_at: number of the step of `STEPS` at which it is killed.
        disk: bytes that a file may have, as where a disk is full.
    """
    child = begin(words, place, kill_at=kill_at, disk=disk)
    return ended(child, place)


def begin(words: Sequence[str], place: Path, *, kill_at: int = 0, disk: int = 0) -> int:
    """Start a command; its process."""
    place.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        _child(words, place / f"said-{os.getpid()}", kill_at, disk)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def ended(child: int, place: Path) -> Done:
    """Wait for a command; kill it where it is stuck."""
    start, status = time.monotonic(), None
    while time.monotonic() - start < SECONDS:
        found, code = os.waitpid(child, os.WNOHANG)
        if found:
            status = os.waitstatus_to_exitcode(code)
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    said = place / f"said-{child}"

    def read(name: str) -> str:
        path = Path(f"{said}.{name}")
        text = path.read_text(errors="replace") if path.is_file() else ""
        path.unlink(missing_ok=True)
        return text

    steps = read("steps")
    return Done(status, read("out"), read("err"), int(steps or 0))


def generate(folder: Path, place: Path) -> Done:
    """What a packed model says."""
    return command(["sq-generate", str(folder), "fault is", "--max-new-tokens", "6"], place)


def _child(words: Sequence[str], said: Path, kill_at: int, disk: int) -> None:
    os.chdir(said.parent)
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{said}.{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644), number)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "w"), write_through=True) for number in (1, 2))
    steps = os.open(f"{said}.steps", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    _count_steps(steps, kill_at)
    if disk:
        resource.setrlimit(resource.RLIMIT_FSIZE, (disk, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    sys.argv = list(words)
    sys.path.insert(0, str(ROOT))
    sys.exit(_program(words[0])(list(words[1:])))


def _program(name: str) -> Callable[[list[str]], int]:
    if name == "run.py":
        return lambda _: runpy.run_path(str(ROOT / "run.py"), run_name="__main__") and 0
    if name == "tables":
        from sq.analysis.tables.__main__ import main

        return lambda _: main()
    if name == "sq-report":
        from sq.cli.report import main as report

        return report
    return sq.cli.generate.main


def _count_steps(place: int, kill_at: int) -> None:
    """Count the steps of `STEPS`, and kill this process in front of one of them."""
    done = 0

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal done
            done += 1
            if done == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            os.pwrite(place, str(done).encode(), 0)
            return step(*arguments, **more)

        return call

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


def fresh(world: World, name: str, kind: str | None = None) -> Path:
    """An empty folder for one fault, or a copy of an undisturbed one."""
    place = world.folder / "faults" / name
    shutil.rmtree(place, ignore_errors=True)
    if kind is None:
        place.mkdir(parents=True)
    else:
        shutil.copytree(world.folder / kind, place)
    return place
