"""A pretend accelerator: tensors that say they live on device "pretend" and compute on the CPU.

    with PretendDevice() as device:
        torch.ones(3, 4, device="pretend") + torch.ones(3, 4)   # RuntimeError: aten::add.Tensor mixes devices
    device.waits                                                # where the host waited for the device, how often
    device.peak                                                 # the most bytes that its tensors held at one time

It shows what a test without a GPU can show of one: an operation that mixes devices as CUDA would refuse it, a tensor
that was made on the wrong one, how often the host waits (`item`, `nonzero`, `tolist`, moves to the CPU), and how many
bytes its tensors hold, without what a kernel takes for itself while it runs. Speed, kernels and numerics of a real
device it cannot show.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from types import FrameType
from typing import Any, ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::_unique2"}
MOVING = {"aten::_to_copy", "aten::copy_"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_"}
OURS = ("/sq/", "/kernels/", "/baselines/")

_registered = False


class PretendTensor(torch.Tensor):
    """Wraps a CPU tensor, `inner`, and reports the pretend device."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> PretendTensor:
        made: PretendTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device(f"{NAME}:0"), requires_grad=inner.requires_grad,
        )  # fmt: skip
        made.inner = inner
        PretendDevice.hold(made)
        return made

    def __init__(self, inner: torch.Tensor) -> None: ...

    def tolist(self) -> Any:
        """The values, for which the host waits."""
        _wait("tolist")
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class PretendDevice(TorchDispatchMode):
    """Makes device="pretend" usable inside the block.

    Attributes:
        waits: how often the host waited, by file:line and operation.
        held: bytes of the storages that its tensors have now.
        peak: the most there were since the block began.
    """

    waits: ClassVar[Counter[str]] = Counter()
    held: ClassVar[int] = 0
    peak: ClassVar[int] = 0
    _users: ClassVar[Counter[int]] = Counter()  # of a storage, by its address

    def __enter__(self) -> PretendDevice:
        global _registered
        if not _registered:
            _setup_privateuseone_for_python_backend(NAME)
            torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(data, device=...) is made on the CPU, then moved
            _registered = True
        PretendDevice.waits.clear()
        PretendDevice.peak = PretendDevice.held
        # `module.to(dtype)` would put new data into the old wrapper, which keeps its old `inner`.
        self._overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        torch.__future__.set_overwrite_module_params_on_conversion(self._overwrites)
        super().__exit__(*error)

    @classmethod
    def hold(cls, tensor: PretendTensor) -> None:
        """Count the storage of a tensor, if no other has it, for as long as one has it."""
        storage = tensor.inner.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if not size:
            return
        if not cls._users[address]:
            cls.held += size
            cls.peak = max(cls.peak, cls.held)
        cls._users[address] += 1
        weakref.finalize(tensor, cls._release, address, size)

    @classmethod
    def _release(cls, address: int, size: int) -> None:
        cls._users[address] -= 1
        if not cls._users[address]:
            del cls._users[address]
            cls.held -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _wait(name: str) -> None:
    frame: FrameType | None = sys._getframe()
    while frame is not None and not any(part in frame.f_code.co_filename for part in OURS):
        frame = frame.f_back
    place = "?" if frame is None else f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"
    PretendDevice.waits[f"{place} {name}"] += 1


def _is_pretend(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _inner(value: Any) -> Any:
    if isinstance(value, PretendTensor):
        return value.inner
    return torch.device("cpu") if isinstance(value, torch.device) and _is_pretend(value) else value


def _by_mask(name: str, args: Any) -> bool:
    """Whether an operation counts the True of a mask to know a size; filling by one with a host's number does not."""
    if name not in INDEXING or not any(index is not None and index.dtype == torch.bool for index in args[1]):
        return False
    return name == "aten::index" or isinstance(args[2], PretendTensor) or args[2].numel() > 1


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on the wrapped tensors, after a look at where they are."""
    name = func.name().partition(".")[0]
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    pretend = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
    if pretend and (name in WAITING or _by_mask(name, args)):
        _wait(name)
    # CUDA takes indexes on the CPU for tensors of its own, and scalars everywhere.
    indexes = name in INDEXING and isinstance(args[0], PretendTensor)
    judged = [args[0], *args[2:]] if indexes else tensors
    strangers = [
        tensor
        for tensor in judged
        if isinstance(tensor, torch.Tensor) and not isinstance(tensor, PretendTensor) and tensor.dim() > 0
    ]
    if pretend and strangers and name not in MOVING:
        where = [(str(tensor.device), tuple(tensor.shape)) for tensor in tensors]
        raise RuntimeError(f"{func.name()} mixes devices: {where}")
    device = kwargs.get("device")
    if device is None:
        device = next((value for value in args if isinstance(value, torch.device)), None)
    here = _is_pretend(device) if device is not None else bool(pretend)
    copied = name == "aten::copy_" and not isinstance(args[0], PretendTensor)
    if pretend and (copied or (not here and name == "aten::_to_copy")):
        _wait("to the CPU")
    on_cpu = {
        key: torch.device("cpu") if key == "device" and _is_pretend(value) else value for key, value in kwargs.items()
    }
    out = func(*tree_map(_inner, args), **tree_map(_inner, on_cpu))
    if name == "aten::copy_" or (args and isinstance(args[0], PretendTensor) and out is args[0].inner):  # in place
        return args[0]
    if isinstance(kwargs.get("out"), PretendTensor):
        return kwargs["out"]
    return tree_map(lambda value: PretendTensor(value) if here and type(value) is torch.Tensor else value, out)
