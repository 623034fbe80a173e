"""Three meters of what a call costs: floating point operations, peak memory, time; and what it asks of a GPU: launches and stops.

Operations, launches and memory on the CPU are exact and repeat to the last digit, so tests can hold them. Time cannot: it is measured in
turns with a plain forward pass and given as a ratio.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils.flop_counter import flop_registry

Call = Callable[[], Any]
_aten = torch.ops.aten
# The profiler that counts bytes announces itself at each start and stop unless told before its first.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


@dataclass(frozen=True)
class Work:
    """What one call asked of the device.

    Parameters
    ----------
    flops
        Of convolutions, matrix products and attention, two for each multiply-add. Element-wise work, sorting, decompositions count nothing.
    launches
        Operations that compute or copy: on CUDA each is at least one kernel. Views and allocations are none.
    stops
        How often the host had to wait for a value: reading a number, counting non-zeros, copying between devices.
    names
        How often each launching operation ran.
    """

    flops: int
    launches: int
    stops: int
    names: Counter[str]


def work(call: Call) -> Work:
    """Count what a call does. The call runs once, under a dispatch mode, on whatever device its tensors are."""
    with _Count() as count, _Fetches() as fetches:
        call()
    return _work_of(count, fetches.stops)


def work_so_far() -> Work:
    """Return what the call that is being counted has done until now, for hooks inside it; what it fetched is not in it."""
    count = _get_current_dispatch_mode()
    if not isinstance(count, _Count):
        raise RuntimeError("nothing is being counted")
    return _work_of(count, 0)


def _work_of(count: _Count, fetched: int) -> Work:
    return Work(count.flops, sum(count.names.values()), count.stops + fetched, Counter(count.names))


class _Count(TorchDispatchMode):
    """See every operation once it is as small as torch makes it.

    torch's own FlopCounterMode follows modules too, and fails where a leaf of the graph enters one. In inference mode whole composites
    (conv3d, linear) arrive here, so they are taken apart first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.stops = 0
        self.names: Counter[str] = Counter()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # The answer True, torch's default, would import torch's compiler at the first call.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        formula = _FLOPS.get(packet) or flop_registry.get(packet)
        # `func.decompose` would prefer the Python twin that some operations (upsampling) have, which is not what runs.
        if formula is None and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE):
            with self:
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        result = func(*args, **kwargs)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=result))
        name = packet.__name__
        if name in _STOPS or _crosses_devices(name, args, kwargs, result):
            self.stops += 1
        elif not func.is_view and func.namespace == "aten" and name not in _IDLE:
            self.names[name] += 1
        return result


class _Fetches(TorchFunctionMode):
    """See where a CPU tensor's values are taken without an operation; of a tensor on CUDA the same is a copy, which `_Count` sees."""

    def __init__(self) -> None:
        super().__init__()
        self.stops = 0
        self._fetched: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _FETCHES and args[0].device.type == "cpu" and not any(args[0] is seen for seen in self._fetched):
            self.stops += 1
            # `x.cpu().numpy()` waits once.
            self._fetched.append(result if isinstance(result, Tensor) else args[0])
        return result


_FETCHES = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.cpu}


def _crosses_devices(name: str, args: Any, kwargs: Any, result: Any) -> bool:
    if name not in ("_to_copy", "copy_", "_copy_from", "_copy_from_and_resize"):
        return False
    tensors = [item for item in (*args[:2], result) if isinstance(item, Tensor)]
    waits = not kwargs.get("non_blocking", False) and not (name == "copy_" and len(args) > 2 and args[2])
    return waits and len({tensor.device.type for tensor in tensors}) > 1


_STOPS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive"}
_IDLE = {
    "empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "_unsafe_view",
    "_reshape_alias", "resize_", "set_", "is_same_size", "lift", "_has_compatible_shallow_copy_type",
    "sym_size", "sym_stride", "sym_numel", "sym_storage_offset",
}  # fmt: skip


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_rest: Any, **_names: Any) -> int:
    batch, heads, asked, width = query.shape
    return 2 * batch * heads * asked * key.shape[-2] * (width + value.shape[-1])


def _attention_backward_flops(
    _gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_rest: Any, **_n: Any
) -> int:
    # The scores once more, then one product each for the gradients of value, weights, query and key.
    batch, heads, asked, width = query.shape
    return 2 * batch * heads * asked * key.shape[-2] * (3 * width + 2 * value.shape[-1])


# What torch's table of formulas leaves out.
_FLOPS: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    _aten.mv: lambda matrix, vector, **_: 2 * matrix.numel(),
    _aten.addmv: lambda _shift, matrix, _vector, **_: 2 * matrix.numel(),
    _aten.dot: lambda one, _other, **_: 2 * one.numel(),
}


def peak_bytes(call: Call, device: str = "cpu") -> int:
    """Return how many bytes the call had live at its worst, beyond what was live before: the tensors it made, and its result.

    On the CPU every allocation and release is recorded, so the number is exact; on CUDA it is the allocator's own maximum.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = call()
    del kept
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    changes.sort(key=lambda change: change[0])
    live = peak = 0
    for _, size in changes:
        live += size
        peak = max(peak, live)
    return peak


def peak_bytes_of_numpy(call: Call) -> int:
    """Return the same for a call whose memory is numpy's."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@dataclass(frozen=True)
class Time:
    """How long a call takes beside another one: the median of the rounds' ratios, with the smallest and the largest, and seconds."""

    ratio: float
    low: float
    high: float
    seconds: float


def time_beside(call: Call, plain: Call, rounds: int = 3, device: str = "cpu", *, warm: bool = True) -> Time:
    """Time a call in turns with a plain one, so that a machine that slows down slows both. Both run once before if `warm`.

    On the CPU this is process time (run it with one thread); on CUDA the time between two events on the stream.
    """
    clock = _cuda_seconds if torch.device(device).type == "cuda" else _cpu_seconds
    if warm:
        plain()
        call()
    ratios, seconds = [], []
    for _ in range(rounds):
        below = clock(plain)
        seconds.append(clock(call))
        ratios.append(seconds[-1] / below)
    return Time(statistics.median(ratios), min(ratios), max(ratios), statistics.median(seconds))


def _cpu_seconds(call: Call) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _cuda_seconds(call: Call) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def stops_on_cuda(call: Call) -> int:
    """Return how often CUDA itself says that the host waited during a call. What runs below the dispatcher is seen too."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
