"""Launches that tuning chose are kept and taken again: a fake kernel, a fake clock, files in a folder of the test."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from sq.kernels.tuned.store import FOLDER_VARIABLE, PACKAGED, Store, read, shared_folder, user_folder

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
GPU, VERSION = "NVIDIA Fake 9000", "9.9.9"
FILE = "nvidia-fake-9000-triton-9.9.9.json"


def body(p_x: Any, T: int, T_BUCKET: int, N: int, BLOCK: int) -> None:
    raise AssertionError("the fake kernel is launched, not called")


class FakeKernel:
    """What triton.autotune needs of a kernel; `run` records the launch and moves the clock by its time."""

    arg_names = ("p_x", "T", "T_BUCKET", "N", "BLOCK")

    def __init__(self, milliseconds: dict[int, float], fails: dict[int, Exception] | None = None) -> None:
        self.fn = body
        self.milliseconds, self.fails = milliseconds, fails or {}
        self.launched: list[int] = []
        self.compiled: list[int] = []
        self.clock = 0.0

    def warmup(self, *args: Any, BLOCK: int, **meta: Any) -> None:
        self.compiled.append(BLOCK)

    def run(self, *args: Any, BLOCK: int, **meta: Any) -> None:
        self.launched.append(BLOCK)
        if BLOCK in self.fails:
            raise self.fails[BLOCK]
        self.clock += self.milliseconds[BLOCK]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's folder; the package's stored launches are out of the way."""
    from sq.kernels.tuned import autotune
    from sq.kernels.tuned import store as module

    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(module, "PACKAGED", tmp_path / "package")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: GPU)
    monkeypatch.setattr(autotune.triton, "__version__", VERSION)
    autotune.store.cache_clear()
    yield tmp_path
    autotune.store.cache_clear()


@pytest.fixture
def tuned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[..., list[int]]]:
    """tuned(kernel, blocks)(tokens, n): call it as a process of its own would, and return what was launched."""
    import triton

    from sq.kernels.tuned import autotune

    def make(kernel: FakeKernel, blocks: tuple[int, ...] = (16, 32, 64, 128)) -> Callable[..., list[int]]:
        def timed(call: Callable[[], Any], quantiles: Any) -> list[float]:
            before = kernel.clock
            call()
            return [kernel.clock - before] * len(quantiles)

        monkeypatch.setattr(autotune, "benchmark", timed)
        autotune.store.cache_clear()
        configs = [triton.Config({"BLOCK": block}, num_warps=4, num_stages=2) for block in blocks]
        whole = autotune.stored_autotune(
            kernel, configs=configs, key=["T_BUCKET", "N"], prune=lambda c, named, **meta: c[:-1] if len(c) > 1 else c
        )

        def call(tokens: int, n: int = 64) -> list[int]:
            kernel.launched.clear()
            whole.run(torch.zeros(1), grid=(1,), warmup=False, T=tokens, T_BUCKET=-(-tokens // 16) * 16, N=n)
            return list(kernel.launched)

        return call

    return make


def test_the_fastest_launch_is_found_stored_and_taken_by_the_next_process(tuned: Any, folder: Path) -> None:
    speeds = {16: 3.0, 32: 1.0, 64: 2.0, 128: 0.1}  # 128 is dropped before timing
    call = tuned(FakeKernel(speeds))
    assert sorted(call(5)) == [16, 32, 32, 64]
    assert call(9) == [32], "a token count of the same bucket was tuned again"
    content = json.loads((folder / FILE).read_text())
    assert content["gpu"] == GPU
    assert content["entries"] == [
        {
            "kernel": "body",
            "key": {"N": 64, "T_BUCKET": 16, "dtypes": "float32"},
            "launch": {"BLOCK": 32, "num_warps": 4, "num_stages": 2},
            "microseconds": 1000.0,
        }
    ]
    again = tuned(FakeKernel(speeds))
    assert again(5) == [32], "a stored launch was tuned again"
    assert sorted(again(5, n=128)) == [16, 32, 32, 64], "another shape has a launch of its own"
    assert len(json.loads((folder / FILE).read_text())["entries"]) == 2


def test_launches_compile_before_they_are_timed_and_stored_ones_alone(tuned: Any) -> None:
    kernel = FakeKernel({16: 3.0, 32: 1.0, 64: 2.0})
    tuned(kernel)(5)
    assert sorted(kernel.compiled) == [16, 32, 64]
    again = FakeKernel({32: 1.0})
    tuned(again)(5)
    assert again.compiled == []


class Hopper:
    """A driver without a GPU behind it: kernels compile for sm_90, and their launches are written down."""

    def __init__(self) -> None:
        self.utils, self.launched = self, []

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448}

    def load_binary(self, *_: Any) -> tuple[int, ...]:
        return 0, 0, 32, 0, 1024

    def unload_module(self, module: int) -> None:
        pass

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *grid_and_arguments: self.launched.append((metadata.name, metadata.num_warps))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton.backends.nvidia") is None, reason="no Triton that compiles for NVIDIA GPUs")
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset")
def test_a_kernel_compiles_is_tuned_and_stored_without_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's own compiler, autotuner and launcher; of a GPU only its name, its size and its clock are made up."""
    from types import SimpleNamespace

    from triton.runtime import driver

    from sq.kernels.backend import interpreted
    from sq.kernels.hadamard.triton import hadamard_dense_kernel, launch
    from sq.kernels.tuned import autotune

    if interpreted():
        pytest.skip("with TRITON_INTERPRET set in this process there is nothing to compile")
    fake, before = Hopper(), driver._active
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder / "compiled"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(multi_processor_count=132))
    tuning = hadamard_dense_kernel.early_config_prune.__self__
    monkeypatch.setattr(tuning, "prune", lambda configs, *_, **__: [c for c in configs if c.num_stages == 1][:5:4])
    milliseconds = iter([2.0, 1.0])

    def timed(call: Callable[[], Any], quantiles: Any) -> list[float]:
        call()
        return [next(milliseconds)] * len(quantiles)

    monkeypatch.setattr(autotune, "benchmark", timed)
    driver.set_active(fake)
    try:
        for tokens in (5, 7):  # one bucket
            launch(torch.randn(tokens, 16).bfloat16(), torch.ones(1, 1), None)
        assert fake.launched == [("hadamard_dense_kernel", warps) for warps in (2, 4, 4, 4)]
        (entry,) = json.loads((folder / FILE).read_text())["entries"]
        assert entry["kernel"] == "hadamard_dense_kernel"
        assert (entry["key"]["N"], entry["key"]["T_BUCKET"], entry["key"]["COMPUTE"]) == (16, 16, "bf16")
        assert entry["launch"] == {"PROGRAMS_PER_SM": 1, "num_warps": 4, "num_stages": 1}
        hadamard_dense_kernel.cache.clear()
        autotune.store.cache_clear()  # as in another process
        fake.launched.clear()
        launch(torch.randn(6, 16).bfloat16(), torch.ones(1, 1), None)
        assert fake.launched == [("hadamard_dense_kernel", 4)]
    finally:
        hadamard_dense_kernel.cache.clear()
        hadamard_dense_kernel.fn.device_caches.clear()
        gc.collect()  # a compiled kernel is unloaded by the driver that is active then
        driver._active = before


def test_a_launch_that_does_not_compile_is_passed_over_with_a_warning(tuned: Any) -> None:
    from triton.runtime.errors import OutOfResources

    fails = {32: RuntimeError("PassManager::run failed"), 64: OutOfResources(300000, 232448, "shared memory")}
    call = tuned(FakeKernel({16: 3.0}, fails))
    with pytest.warns(UserWarning, match=r"'BLOCK': 32.*PassManager"):
        assert call(5)[-1] == 16
    assert tuned(FakeKernel({16: 3.0}))(5) == [16]


def test_a_lost_device_ends_the_tuning(tuned: Any, folder: Path) -> None:
    call = tuned(FakeKernel({}, dict.fromkeys((16, 32, 64), RuntimeError("CUDA error: an illegal memory access"))))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        call(5)
    assert not (folder / FILE).exists()


def test_a_tuning_cut_short_is_used_but_not_stored(tuned: Any, folder: Path) -> None:
    from sq.kernels.tuned.autotune import tuning_limit

    call = tuned(FakeKernel({16: 3.0, 32: 1.0, 64: 2.0}))
    with tuning_limit(0.0) as cut:
        assert len(call(5)) == 2, "one launch timed, then taken"
    assert cut == {"body"}
    assert not (folder / FILE).exists()
    assert len(tuned(FakeKernel({16: 3.0, 32: 1.0, 64: 2.0}))(5)) == 4, "without a limit all are tried"


def test_one_config_needs_no_store(tuned: Any, folder: Path) -> None:
    """The interpreter has one config and no GPU whose launches could be looked up."""
    (folder / FILE).write_text("{")
    assert tuned(FakeKernel({16: 1.0}), (16,))(5) == [16]


ENTRY = {"kernel": "body", "key": {"T_BUCKET": 16, "N": 64, "dtypes": "float32"}, "microseconds": 1.0}
GOOD = {**ENTRY, "launch": {"BLOCK": 32, "num_warps": 4, "num_stages": 2}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("{", "damaged"),
        ("[]", "schema is 'list'"),
        ({"schema": 7}, "schema is 7"),
        ({"gpu": "NVIDIA Other"}, "foreign, of gpu 'NVIDIA Other'"),
        ({"triton": "1.0"}, "foreign, of triton '1.0'"),
        ({"entries": None}, "no list of entries"),
        ({"entries": [ENTRY]}, "entry 0 must have kernel, key, launch"),
        ({"entries": [{**GOOD, "launch": {"BLOCK": "x"}}]}, "positive integers"),
        ({"entries": [{**GOOD, "launch": {**GOOD["launch"], "BLOCK": 128}}]}, "none of its 3 candidates"),
        ({"entries": [{**GOOD, "key": {"T_BUCKET": 16}}]}, "another version"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) > 2 else None,
)
def test_a_damaged_or_foreign_file_is_refused_with_the_reason(
    tuned: Any, folder: Path, change: Any, reason: str
) -> None:
    content = {"schema": 1, "gpu": GPU, "triton": VERSION, "entries": [GOOD]}
    text = change if isinstance(change, str) else json.dumps({**content, **change})
    (folder / FILE).write_text(text)
    with pytest.raises(ValueError, match=reason) as caught:
        tuned(FakeKernel({16: 1.0, 32: 1.0, 64: 1.0}))(5)
    assert FILE in str(caught.value)
    assert "sq-bench --tune" in str(caught.value)


def test_a_good_file_is_used(tuned: Any, folder: Path) -> None:
    (folder / FILE).write_text(json.dumps({"schema": 1, "gpu": GPU, "triton": VERSION, "entries": [GOOD]}))
    assert tuned(FakeKernel({16: 1.0, 32: 9.0, 64: 1.0}))(5) == [32]


def test_the_users_folder_wins_over_the_package(folder: Path) -> None:
    for place, block in ((folder / "package", 16), (folder, 64)):
        place.mkdir(exist_ok=True)
        entry = {**GOOD, "launch": {"BLOCK": block, "num_warps": 4, "num_stages": 2}}
        (place / FILE).write_text(json.dumps({"schema": 1, "gpu": GPU, "triton": VERSION, "entries": [entry]}))
    assert Store(GPU, VERSION).find("body", GOOD["key"])["BLOCK"] == 64
    (folder / FILE).unlink()
    assert Store(GPU, VERSION).find("body", GOOD["key"])["BLOCK"] == 16


def test_two_writers_keep_each_others_launches(folder: Path) -> None:
    first, second = Store(GPU, VERSION), Store(GPU, VERSION)
    first.add("one", {"N": 1}, {"BLOCK": 16}, 1.0)
    second.add("two", {"N": 1}, {"BLOCK": 32}, 2.0)
    assert len(read(folder / FILE, GPU, VERSION)) == 2


def test_a_folder_that_cannot_be_written_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder / "file" / "below"))
    store = Store(GPU, VERSION)
    with pytest.warns(UserWarning, match=FOLDER_VARIABLE):
        store.add("one", {"N": 1}, {"BLOCK": 16}, 1.0)
    assert store.find("one", {"N": 1}) == {"BLOCK": 16}


def test_where_launches_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert user_folder() == shared_folder() == tmp_path
    monkeypatch.delenv(FOLDER_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert user_folder() == tmp_path / "cache" / "singlequant" / "tuned"
    monkeypatch.setattr("os.access", lambda *_: True)
    assert shared_folder() == PACKAGED
    monkeypatch.setattr("os.access", lambda *_: False)
    assert shared_folder() == user_folder()


def test_every_file_of_the_package_can_be_read() -> None:
    for path in PACKAGED.glob("*.json"):
        content = json.loads(path.read_text())
        assert path.name == Store(content["gpu"], content["triton"]).file_name
        assert read(path, content["gpu"], content["triton"])


@pytest.mark.parametrize("name", ["rotate_quantize", "hadamard", "kv4_attention", "int4_matmul"])
def test_every_kernel_with_several_configs_is_stored(name: str) -> None:
    """Its autotuner's hooks are the store's."""
    from importlib import import_module

    from sq.kernels.backend import interpreted

    if interpreted():
        pytest.skip("with TRITON_INTERPRET set in this process there is one config")
    if name == "int4_matmul":
        launch = import_module("sq.kernels.int4_matmul.launch")
        kernels = [launch._tuned(form) for form in ("decode", "prefill", "workspace")]
    else:
        module = import_module(f"sq.kernels.{name}.triton")
        kernels = [value for value in vars(module).values() if hasattr(value, "early_config_prune")]
    assert kernels
    for kernel in kernels:
        assert len(kernel.configs) > 1
        assert type(kernel.early_config_prune.__self__).__name__ == "_Tuning"
