"""The kinds of faults: each injects one and says whether what is promised held (docs/trust.md)."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sq.checkpoint.manifest import seal
from tests.faults.damage import any_damage
from tests.faults.world import Done, World, begin, command, ended, fresh, generate

HELD, WRONG, LOST, STUCK, TRACEBACK = "held", "wrong", "lost", "stuck", "traceback"


@dataclass(frozen=True)
class Outcome:
    """What came of a fault, and how to find it again."""

    verdict: str
    story: str


def judged(story: str, *dones: Done) -> Outcome | None:
    """The verdict where a command was stuck or showed a traceback."""
    for done in dones:
        if done.status is None:
            return Outcome(STUCK, story)
        if done.traceback:
            return Outcome(TRACEBACK, f"{story}: {(done.err + done.out).strip()[-1500:]}")
    return None


def completed(world: World, kind: str, place: Path, story: str, *before: Done) -> Outcome:
    """Run the command again, undisturbed: it must finish, with the numbers of the run that nothing happened to."""
    again = command(world.words(kind, place / "runs"), place)
    if (bad := judged(story, *before, again)) is not None:
        return bad
    if again.status != 0:
        return Outcome(LOST, f"{story}: the rerun ended with {again.status}: {again.err.strip()[-300:]}")
    found = world.measured(place / "runs")
    if found != world.metrics[kind]:
        names = [name for name, value in world.metrics[kind].items() if found.get(name) != value]
        return Outcome(WRONG, f"{story}: {names[:4]} differ from the undisturbed run")
    if kind == "packed":
        said = generate(place / "packed", place)
        if said.status != 0 or said.out != world.said:
            return Outcome(WRONG, f"{story}: the packed model says something else: {said.err.strip()[-200:]}")
    return Outcome(HELD, story)


def killed(world: World, dice: random.Random, name: str) -> Outcome:
    """A run is killed at one of its steps; the same command completes it."""
    kind = dice.choice(("plain", "packed", "packed", "sweep"))
    place, step = fresh(world, name), dice.randint(1, world.steps[kind])
    done = command(world.words(kind, place / "runs"), place, kill_at=step)
    story = f"{kind} killed at step {step}"
    if dice.random() < 0.3:  # and the rerun as well
        second = dice.randint(1, world.steps[kind])
        command(world.words(kind, place / "runs"), place, kill_at=second)
        story += f", again at step {second}"
    died = done.status in (-signal.SIGKILL, 0)
    return completed(world, kind, place, story) if died else completed(world, kind, place, story, done)


def full_disk(world: World, dice: random.Random, name: str) -> Outcome:
    """A disk is full, or files cannot grow beyond some bytes; with room again the same command completes the run."""
    kind = dice.choice(("plain", "packed", "sweep"))
    place, size = fresh(world, name), int(10 ** dice.uniform(1, 5.7))
    words = world.words(kind, place / "runs")
    with small_disk(place, max(size, 4096)) as grow:
        if grow is None:
            done = command(words, place, disk=size)
            return completed(world, kind, place, f"{kind} with at most {size} bytes a file", done)
        done = command(words, place.with_name(f"{name}-said"))
        grow()
        return completed(world, kind, place, f"{kind} on a disk of {size} bytes", done)


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Callable[[], object] | None]:
    """Mount a disk of `size` bytes at a folder, and yield what gives it room; None where this may not be done."""

    def mount(*words: str) -> bool:
        return subprocess.run(["mount", *words], capture_output=True).returncode == 0

    if os.geteuid() != 0 or not mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)):
        yield None
        return
    try:
        yield lambda: mount("-o", "remount,size=1g", str(place))
    finally:
        subprocess.run(["umount", "-l", str(place)], capture_output=True)


def damaged_result(world: World, dice: random.Random, name: str) -> Outcome:
    """A file of a run directory is damaged: tables say so, the same command makes it again."""
    kind = dice.choice(("plain", "sweep"))
    place = fresh(world, name, kind)
    files = [path for path in sorted(place.glob("runs/*/*")) if path.suffix in (".json", ".npz", ".yaml")]
    file = dice.choice(files)
    story = any_damage(file, dice)
    table = command(["tables", "bits", str(place / "runs"), "experiment=none"], place)
    page = command(["sq-report", "--run", str(file.parent), "--out", str(place / "out")], place)
    return completed(world, kind, place, story, table, page)


def damaged_packed(world: World, dice: random.Random, name: str) -> Outcome:
    """A file of a packed folder is damaged: loading says so, or what is loaded is what was written."""
    place = fresh(world, name, "packed")
    files = sorted(path for path in (place / "packed").iterdir() if path.is_file())
    story = any_damage(dice.choice(files), dice)
    said = generate(place / "packed", place)
    if (bad := judged(story, said)) is not None:
        return bad
    if said.status == 0:
        return Outcome(HELD if said.out == world.said else WRONG, story)
    if said.status not in (1, 2) or not said.err.strip().splitlines()[-1].startswith("sq-generate: "):
        return Outcome(WRONG, f"{story}: no clear end: {said.status} {said.err.strip()[-200:]}")
    if dice.random() < 0.5 and "config.json" not in story.split(":")[0]:
        return completed(world, "packed", place, f"{story}, run again")
    return Outcome(HELD, story)


def damaged_part(world: World, dice: random.Random, name: str) -> Outcome:
    """A file of an interrupted checkpoint is damaged: the same command makes that part again."""
    place = fresh(world, name)
    command(world.words("packed", place / "runs"), place, kill_at=dice.randint(20, world.steps["packed"] - 5))
    files = sorted((place / "packed.part").glob("*")) or sorted((place / "packed").glob("*.safetensors"))
    story = any_damage(dice.choice(files), dice) if files else "nothing was there yet"
    return completed(world, "packed", place, f"interrupted, then {story}")


def damaged_cache(world: World, dice: random.Random, name: str) -> Outcome:
    """A file of the cache (tokens, digests) is damaged: it is not believed."""
    kind = dice.choice(("plain", "packed"))
    place = fresh(world, name, kind)
    for made in ("runs", "packed"):
        shutil.rmtree(place / made, ignore_errors=True)
    files = sorted(path for path in (place / "cache").rglob("*") if path.is_file())
    story = any_damage(dice.choice(files), dice)
    return completed(world, kind, place, f"cache, {story}")


def damaged_source(world: World, dice: random.Random, name: str) -> Outcome:
    """A file of the model changes between two runs: nothing of the first is taken for the second."""
    place = fresh(world, name, "plain")
    model = shutil.copytree(world.folder / "model", place / "model")
    file = dice.choice([model / "model.safetensors"] * 4 + [model / "config.json", model / "tokenizer.json"])
    story = any_damage(file, dice)
    before = set((place / "runs").iterdir())
    done = command(world.words("plain", place / "runs", model=model), place)
    if (bad := judged(story, done)) is not None:
        return bad
    made = set((place / "runs").iterdir()) - before
    if done.status == 0 and not made:
        same = (world.folder / "model" / file.name).read_bytes() == file.read_bytes()
        weights = file.name == "model.safetensors" and file.is_file() and _same_tensors(file, world)
        return Outcome(HELD if same or weights else WRONG, f"{story}: the old result was reused")
    return _sensible(story, done, place)


def senseless_weights(world: World, dice: random.Random, name: str) -> Outcome:
    """NaN, inf, huge or no numbers in a weight: an error, or numbers that mean something."""
    place = fresh(world, name)
    model = shutil.copytree(world.folder / "model", place / "model")
    tensors = load_file(model / "model.safetensors")
    tensor = dice.choice(sorted(tensors))
    value = dice.choice((float("nan"), float("inf"), 0.0, 1e30, 1e38, -1e20))
    if dice.random() < 0.5:
        tensors[tensor] = torch.full_like(tensors[tensor], value)
    else:
        tensors[tensor].view(-1)[dice.randrange(tensors[tensor].numel())] = value
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    done = command(world.words("plain", place / "runs", model=model), place)
    story = f"{tensor} holds {value}"
    return judged(story, done) or _sensible(story, done, place)


def _sensible(story: str, done: Done, place: Path) -> Outcome:
    """A run either failed, with its reason, or has numbers."""
    if done.status != 0:
        told = (done.err + done.out).strip()
        return Outcome(HELD if told else WRONG, story)
    for path in place.glob("runs/*/result.json"):
        record = json.loads(path.read_text())
        numbers = record["metrics"]
        empty = [key for key, value in numbers.items() if value is None]
        if record["status"] == "finished" and (empty or not numbers):
            return Outcome(WRONG, f"{story}: finished without {empty}")
    return Outcome(HELD, story)


def _same_tensors(file: Path, world: World) -> bool:
    try:
        found, wanted = load_file(file), load_file(world.folder / "model" / file.name)
    except Exception:
        return False
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


MISTAKES = (
    "method.rank=-1", "method=smoothquant method.alpha=abc", "+method.foo=1", "weights.group_size=7", "seed=1e99",
    "calibration.tokens=1", "calibration.tokens=-5", "bits=w99a1", "bits=[]", "model.device=tpu", "task=nothing",
    "activations.clip=2", "save_to=/proc/x", "paths.results=/proc/x", "calibration.path=/nowhere", "nothing=1", "=",
    "method=", "model.path=/nowhere", "model.path=../../etc", "model.dtype=int8", "task.perplexity.count=0",
    "task.perplexity.texts=[]", "weights=gptq weights.damping=-1", "activations=symmetric activations.scheme=odd",
    "bits=w4a4kv4 kv_cache.group_size=5", "-m method=rtn,nope", "method=rtn,quarot", "method._target_=os.system",
    "executor=os.system", "tracker=offline tracker.dir=/proc/x", "calibration.seed=-1", "model.outliers=planted",
    "weights.clip=abc", "~method", "model={a:1}", "model.path=null", "task.perplexity.window=1", "method.seed=x",
)  # fmt: skip
OTHERS = (
    ["sq-generate", "nowhere", "x"], ["sq-generate", "{packed}", ""],
    ["sq-generate", "{packed}", "x", "--device", "a"], ["sq-generate", "{packed}", "x", "--temperature", "nan"],
    ["sq-generate", "{packed}", "x", "--max-new-tokens", "-3"],
    ["sq-generate", "{runs}", "x"], ["sq-generate", "{packed}", "x", "--seed", "99999999999999999999"],
    ["tables", "nothing"], ["tables", "bits", "nowhere"], ["tables", "perplexity", "{runs}", "experiment=nope"],
    ["tables", "bits", "{runs}", "format=pdf"], ["tables", "time", "{runs}", "bits=w9a9"], ["tables"],
    ["tables", "main", "{packed}"], ["tables", "bits", "{runs}", "a.b=c", "experiment=none"],
    ["sq-report", "--run", "nowhere"], ["sq-report", "--run", "{packed}"], ["sq-report", "--results", "nowhere"],
    ["sq-report", "--only", "nothing"], ["sq-report", "bits=w9a9", "--results", "{runs}"],
)  # fmt: skip


def bad_command(world: World, dice: random.Random, name: str) -> Outcome:
    """A mistake in a command: status 2 and a line, and no run directory."""
    place = fresh(world, name, "packed")
    if dice.random() < 0.6:
        mistake = dice.choice(MISTAKES)
        words = world.words("plain", place / "new")
        first = [word for word in mistake.split() if word == "-m"]
        words = [words[0], *first, *words[1:], *(word for word in mistake.split() if word != "-m")]
        if "-m" in first or mistake == "method=rtn,quarot":
            words = [word for word in words if word != "method=quarot"]
    else:
        given = {"packed": str(place / "packed"), "runs": str(place / "runs")}
        words = [word.format(**given) for word in dice.choice(OTHERS)]
        mistake = " ".join(words)
    done = command(words, place)
    if (bad := judged(mistake, done)) is not None:
        return bad
    made = (place / "new").exists() and any((place / "new").iterdir())
    clear = done.status in (1, 2) and bool((done.err + done.out).strip()) and (done.status == 2 or words[0] != "run.py")
    if done.status == 1 and words[0] == "run.py":  # found when it ran: told as a failed run
        clear = "failed: " in done.out
    held = clear and (not made or done.status == 1)
    return Outcome(HELD if held else WRONG, f"{mistake}: {done.status} {done.err.strip()[-200:]}")


def race(world: World, dice: random.Random, name: str) -> Outcome:
    """Two processes make the same run at the same time: both end well, with the same numbers."""
    kind = dice.choice(("plain", "packed", "sweep", "one folder"))
    place = fresh(world, name)
    if kind == "one folder":
        return _race_for_a_folder(world, place)
    words = world.words(kind, place / "runs")
    children = [begin(words, place) for _ in range(2)]
    if dice.random() < 0.3:
        os.kill(children[0], signal.SIGKILL)
    dones = [ended(child, place) for child in children]
    wrong = [done for done in dones if done.status not in (0, -signal.SIGKILL)]
    story = f"two processes of {kind}"
    if wrong and judged(story, *wrong) is None:
        return Outcome(WRONG, f"{story}: {wrong[0].status} {wrong[0].err.strip()[-300:]}")
    return completed(world, kind, place, story, *wrong)


def _race_for_a_folder(world: World, place: Path) -> Outcome:
    """Two runs save to one folder at the same time: one has it, the other is told."""
    words = world.words("packed", place / "runs")
    methods = ("method=quarot", "method=rtn")
    commands = [[method if word == "method=quarot" else word for word in words] for method in methods]
    dones = [ended(child, place) for child in [begin(command, place) for command in commands]]
    story = f"two runs and one folder: {[done.status for done in dones]}"
    if (bad := judged(story, *dones)) is not None:
        return bad
    said = generate(place / "packed", place)
    held = sorted(done.status or 0 for done in dones) in ([0, 1], [0, 2]) and said.status == 0
    return Outcome(HELD if held else WRONG, f"{story} {said.err.strip()[-200:]}")


def hostile(world: World, dice: random.Random, name: str) -> Outcome:
    """A file that wants more than to be read: nothing outside its folder is touched, nothing runs."""
    place = fresh(world, name, "packed")
    witness = place / "witness"
    story = dice.choice(HOSTILE)
    model = shutil.copytree(world.folder / "model", place / "model")
    if story in ("index", "code", "nested", "sizes"):
        config = json.loads((model / "config.json").read_text())
        if story == "index":
            outside = shutil.move(model / "model.safetensors", place / "outside.safetensors")
            index = {"weight_map": dict.fromkeys(load_file(outside), "../outside.safetensors")}
            (model / "model.safetensors.index.json").write_text(json.dumps(index))
            shutil.copy(outside, model / "other.safetensors")
        elif story == "code":
            (model / "evil.py").write_text(f"open({str(witness)!r}, 'w')\nclass C: pass\n")
            auto = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}
            config |= {"auto_map": auto, "model_type": dice.choice(("llama", "evil"))}
        elif story == "nested":
            config = config | {"more": _nest(dice.choice((50, 5000)))}
        else:
            config[dice.choice(("num_hidden_layers", "hidden_size", "vocab_size"))] = dice.choice((10**9, -1, 2**62))
        (model / "config.json").write_text(json.dumps(config))
        done = command(world.words("plain", place / "new", model=model), place)
        fine = story == "code" and done.status == 0 and config["model_type"] == "llama"
    elif story == "result":
        folder = next((place / "runs").iterdir())
        text = (folder / "result.json").read_text().replace(folder.name, f"../../../{witness.name}")
        (folder / "result.json").write_text(text)
        done, fine = command(["sq-report", "--run", str(folder), "--out", str(place / "a" / "b")], place), False
    else:
        file = place / "packed" / "config.json"
        config = json.loads(file.read_text())
        data = config["quantization_config"]
        if story == "class":
            transform = data["layers"][0]["sites"]["down"]["transform"]
            transform["class"] = dice.choice(("sq.kernels.bench.__main__.X", "os.system", "sq.runs.sweep.job"))
        else:
            data["files"]["../witness"] = "0"
        data["config_digest"] = seal(config)
        file.write_text(json.dumps(config))
        done, fine = generate(place / "packed", place), False
    if (bad := judged(story, done)) is not None:
        return bad
    if witness.exists():
        return Outcome(WRONG, f"{story}: it ran or was written")
    held = fine or (done.status in (1, 2) and bool((done.err + done.out).strip()))
    return Outcome(HELD if held else WRONG, f"{story}: {done.status} {done.err.strip()[-200:]}")


HOSTILE = ("index", "code", "nested", "sizes", "result", "class", "files")


def _nest(depth: int) -> object:
    value: object = 1
    for _ in range(min(depth, 400)):
        value = [value]
    return value


def taken_folder(world: World, dice: random.Random, name: str) -> Outcome:
    """save_to names a folder of something else: refused before anything starts, and nothing in it changes."""
    place = fresh(world, name, "packed")
    what = dice.choice(("another run", "the model", "something else", "two jobs"))
    words = world.words("packed", place / "new")
    words = [word for word in words if not word.startswith(("save_to=", "method="))]
    folder = {"the model": place / "model", "something else": place / "notes"}.get(what, place / "packed")
    if what == "the model":
        shutil.copytree(world.folder / "model", folder)
    elif what == "something else":
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    elif what == "two jobs":
        folder = place / "fresh"
    before = {path: path.read_bytes() for path in sorted(folder.glob("*"))} if folder.exists() else {}
    first = ["-m"] if what == "two jobs" else []
    method = "rtn,quarot" if what == "two jobs" else "rtn"
    done = command([words[0], *first, *words[1:], f"method={method}", f"save_to={folder}"], place)
    if (bad := judged(what, done)) is not None:
        return bad
    after = {path: path.read_bytes() for path in sorted(folder.glob("*"))} if folder.exists() else {}
    held = done.status == 2 and before == after
    return Outcome(HELD if held else WRONG, f"{what}: {done.status} {done.err.strip()[-200:]}")


Kind = Callable[[World, random.Random, str], Outcome]
KINDS: dict[str, tuple[Kind, int]] = {  # with how many of 100 faults are of it
    "kill -9": (killed, 18),
    "full disk": (full_disk, 8),
    "damaged run directory": (damaged_result, 12),
    "damaged packed folder": (damaged_packed, 16),
    "damaged interrupted folder": (damaged_part, 6),
    "damaged cache": (damaged_cache, 4),
    "changed or damaged model": (damaged_source, 8),
    "NaN, inf, 0, 1e30 in weights": (senseless_weights, 8),
    "bad command": (bad_command, 10),
    "race": (race, 4),
    "hostile file": (hostile, 4),
    "save_to a taken folder": (taken_folder, 2),
}
