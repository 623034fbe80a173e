"""What is measured: a table of tasks. Each asks for one thing on some workloads, of medcam and of other tools, and has a bound for medcam.

A new task is one row of `TASKS`. A tool is a function from a case that stands ready to the call that is measured, so what a library does
once is not counted. What a library cannot do raises; the cell then says so, and nothing else stops.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

import medcam
import medcam.engine.windows
from benchmarks import peers
from benchmarks.meters import Call
from benchmarks.workloads import Case, case, occlusion_window
from medcam.engine import EXPLAINERS
from medcam.geometry import Grid

Tool = Callable[[Any], Call]


class NotThereYet(Exception):  # noqa: N818  it is an answer, not a fault
    """medcam cannot do this so far."""


@dataclass(frozen=True)
class Facts:
    """What a bound may depend on: the share of the forward after the layer, the layer's channels, and the task's own count of passes."""

    b: float
    channels: int
    passes: int


@dataclass(frozen=True)
class Bound:
    """The most that medcam may need: operations, memory, time as ratios to a plain forward; launches beyond it; stops of the host."""

    f: float | None = None
    m: float | None = None
    t: float | None = None
    launches: int | None = None
    stops: int | None = None


@dataclass(frozen=True)
class Task:
    """One row of the benchmark's table of tasks.

    Parameters
    ----------
    title
        What is asked, in words.
    workloads
        Names from `WORKLOADS`, or of what `prepare` makes.
    tools
        By name; those that start with 'medcam' are held to the bound.
    bound
        From the name of a workload and its facts.
    passes
        How many forward passes the task asks for by its definition, where it does.
    peer_size
        The size that peers are measured at, where they would need an hour at the full one.
    prepare, plain
        What makes a case, and the call that is the unit.
    measured
        The tools held to the bound.
    host_only
        Whether it has nothing to do with CUDA.
    """

    title: str
    workloads: tuple[str, ...]
    tools: dict[str, Tool]
    bound: Callable[[str, Facts], Bound] = lambda _name, _facts: Bound()
    passes: int = 1
    peer_size: str | None = None
    prepare: Callable[[str, str, str], Any] | None = None
    plain: Callable[[Any], Call] = field(default=lambda ready: ready.forward)
    measured: tuple[str, ...] = ("medcam",)
    host_only: bool = False


# --- medcam ---

CLASS = 1


def _require(*methods: str) -> None:
    missing = [method for method in methods if method.split("(")[0] not in EXPLAINERS]
    if missing:
        raise NotThereYet(f"no method {', '.join(missing)}")


def _ability(name: str, *options: str) -> Callable[..., Any]:
    """Return a public function of medcam that takes these options."""
    found: Callable[..., Any] | None = getattr(medcam, name, None)
    if found is None:
        raise NotThereYet(f"no medcam.{name}")
    unknown = set(options) - set(inspect.signature(found).parameters)
    if unknown:
        raise NotThereYet(f"medcam.{name} has no {', '.join(sorted(unknown))}")
    return found


def one_map(method: str = "grad-cam", *, layer: bool = True, on_input: bool = False) -> Tool:
    """One method, one class, by `medcam.relevance`."""

    def tool(ready: Case) -> Call:
        _require(method)
        chosen = {"layer": ready.workload.layer} if layer else {}

        def call() -> Any:
            found = medcam.relevance(ready.network, ready.inputs, target=CLASS, method=method, **chosen)
            return found.on_input() if on_input else found

        return call

    return tool


def many_maps(
    methods: tuple[str, ...] = ("grad-cam",), classes: int | None = 1, options: dict[str, Any] | None = None
) -> Tool:
    """Several methods and classes at one layer from one pass, by `medcam.relevances`. `classes` None is all of them."""

    def tool(ready: Case) -> Call:
        given = options or {}
        relevances = _ability("relevances", *given)
        _require(*methods)
        targets = [CLASS] if classes == 1 else list(range(classes or ready.classes))
        return lambda: relevances(
            ready.network, ready.inputs, methods=list(methods), targets=targets, layers=[ready.workload.layer], **given
        )

    return tool


def _occlusion(ready: Case) -> Call:
    window = list(occlusion_window(ready))
    return one_map(f"occlusion(window={window},stride={window})", layer=False)(ready)


FAMILY = ("grad-cam", "grad-cam++", "xgrad-cam", "hires-cam", "layer-cam")


# --- bounds, as issue and PERFORMANCE.md state them ---


def _cam_bound(name: str, facts: Facts) -> Bound:
    if facts.b < 0.01:
        # What follows the layer is a head: its backward pass is a handful of launches.
        return Bound(1.01 if name == "segres" else 1.005, 1.05, 1.10, launches=30, stops=1)
    return Bound(1 + facts.b + 0.01, {"unet": 2.6, "segres_enc": 1.85}.get(name), 1 + 1.2 * facts.b, stops=1)


def _family_bound(name: str, facts: Facts) -> Bound:
    if name == "segres":
        return Bound(1.01, 1.35, 1.25, launches=30 * len(FAMILY), stops=1)
    one = _cam_bound(name, facts)
    return replace(one, launches=one.launches and one.launches * len(FAMILY))


def _tail_sweep_bound(_name: str, facts: Facts) -> Bound:
    swept = facts.channels * facts.b
    return Bound(1.01 + swept, None, 1 + 1.3 * swept if swept > 1 else None)


def _masks_bound(_name: str, facts: Facts) -> Bound:
    return Bound(1.1 * facts.passes, None, 1.1 * facts.passes)


# --- placing a map on a clinical grid ---


@dataclass(frozen=True, eq=False)
class Placing:
    """A coarse map, and the grid that it goes to: 16 x 16 x 10 onto 512 x 512 x 300, or a quarter of that along each axis.

    `result` is something of the result's size to copy: numpy's or torch's, which take their memory from the system in different ways.
    """

    values: Any
    onto: Grid
    result: Any

    @property
    def stride(self) -> tuple[float, ...]:
        return tuple(n / t for n, t in zip(self.onto.shape, self.values.shape, strict=True))

    @property
    def offset(self) -> tuple[float, ...]:
        return tuple((step - 1) / 2 for step in self.stride)


def _placing(_name: str, size: str, _device: str) -> Placing:
    shape = {"full": (512, 512, 300), "small": (128, 128, 75)}[size]
    values = np.random.default_rng(0).standard_normal((16, 16, 10)).astype(np.float32)
    return Placing(values, Grid(shape, np.diag([0.8, 0.8, 1.5, 1.0])), np.ones(shape, np.float32))


def _placing_tensors(name: str, size: str, device: str) -> Placing:
    made = _placing(name, size, device)
    return Placing(torch.from_numpy(made.values).to(device), made.onto, torch.from_numpy(made.result).to(device))


def _resample(ready: Placing) -> Call:
    cells = ready.onto.coarsened(ready.values.shape, ready.stride, ready.offset)
    return lambda: medcam.resample(ready.values, cells, ready.onto, within=ready.onto)


def _on_input(ready: Placing) -> Call:
    return medcam.Relevance(
        ready.values[None], ready.stride, ready.offset, ready.onto.shape, "", "", (), torch.zeros(1), None, ((),)
    ).on_input


# --- sliding windows ---


@dataclass(frozen=True, eq=False)
class Windows:
    """A volume larger than the window that its network takes: four windows in full size."""

    case: Case
    volume: torch.Tensor
    window: tuple[int, int, int]

    def sweep(self) -> Any:
        from monai.inferers import sliding_window_inference

        with torch.inference_mode():
            return sliding_window_inference(
                self.volume, self.window, 1, self.case.network, overlap=0.25, mode="gaussian"
            )


def _windows(name: str, size: str, device: str) -> Windows:
    from benchmarks.workloads import WORKLOADS

    ready = case(WORKLOADS[name], size, device)
    sides = tuple(ready.inputs.shape[2:])
    bigger = (*(n + 3 * n // 4 for n in sides[:2]), *sides[2:])
    volume = torch.randn((*ready.inputs.shape[:2], *bigger), generator=torch.Generator().manual_seed(1))
    return Windows(ready, volume.to(device), sides)  # type: ignore[arg-type]


def _windowed(ready: Windows) -> Call:
    settings = medcam.engine.windows.Windows(ready.window, overlap=0.25, mode="gaussian")
    return lambda: medcam.engine.windows.windowed_relevances(
        ready.case.network, ready.volume, settings, layers=[ready.case.workload.layer], targets=[CLASS], prediction=True
    )


def _windows_bound(_name: str, facts: Facts) -> Bound:
    deep = facts.b > 0.01
    return Bound(1 + facts.b + 0.01, 2.1 if deep else 1.5, 1.1 * (1 + facts.b) + 0.1 if deep else 1.15)


# --- the table ---

_MASKS, _STEPS = 64, 8
_LAST = ("dn2d", "dn2d_b8", "dn3d", "r18")
_CAMS = (*_LAST, "segres", "segres_enc", "unet", "swin", "vit")
_WHOLE = ("dn2d", "r18")

# fmt: off
TASKS: dict[str, Task] = {
    "grad-cam": Task(
        "One Grad-CAM of one class", _CAMS,
        {"medcam": one_map(), "medcam, layer not named": one_map(layer=False), "medcam, on the input's voxels": one_map(on_input=True),
         "MONAI GradCAM": peers.monai_cam("GradCAM"), "MONAI CAM": peers.monai_classic_cam, "grad-cam": peers.grad_cam("GradCAM"),
         "torchcam": peers.torchcam("GradCAM"), "captum": peers.captum_layer_cam},
        _cam_bound,
    ),
    "family": Task(
        "Five rules of (activation, gradient): Grad-CAM, Grad-CAM++, XGrad-CAM, HiRes-CAM, LayerCAM",
        (*_LAST, "segres", "segres_enc", "unet"),
        {"medcam": many_maps(FAMILY),
         "MONAI (two of the five)": peers.monai_cam("GradCAM", "GradCAMpp"),
         "grad-cam": peers.grad_cam("GradCAM", "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "LayerCAM"),
         "torchcam (four)": peers.torchcam("GradCAM", "GradCAMpp", "XGradCAM", "LayerCAM")},
        _family_bound,
    ),
    "14-classes": Task(
        "Five rules for each of 14 classes (peers: one rule)", ("dn2d", "dn2d_b8", "dn3d"),
        {"medcam": many_maps(FAMILY, None), "grad-cam": peers.each_class(peers.grad_cam("GradCAM"), 14),
         "torchcam": peers.each_class(peers.torchcam("GradCAM"), 14), "captum": peers.each_class(peers.captum_layer_cam, 14)},
        lambda _name, _facts: Bound(1.01, 1.05, 1.15),
    ),
    "three-classes": Task(
        "Grad-CAM of three classes at a deep layer", ("segres_enc", "unet", "swin"),
        {"medcam": many_maps(classes=None), "torchcam": peers.each_class(peers.torchcam("GradCAM"), 3)},
        lambda _name, facts: Bound(1 + 3 * facts.b + 0.01),
    ),
    "low-memory": Task(
        "Grad-CAM of one class at a deep layer, memory before time", ("segres_enc", "unet"),
        {"medcam": many_maps(options={"low_memory": True})},
        lambda name, _facts: Bound(None, {"unet": 2.2, "segres_enc": 1.45}[name]),
    ),
    "104-classes": Task(
        "Grad-CAM of 104 classes at a layer of 8 channels", ("organs",),
        {"medcam": many_maps(classes=None), "torchcam": peers.each_class(peers.torchcam("GradCAM"), 104)},
        lambda _name, _facts: Bound(2.0, None, 2.8),
    ),
    "ablation-head": Task(
        "Ablation-CAM in front of pooling and a linear head, 1024 channels", ("dn2d", "dn3d"),
        {"medcam": one_map("ablation-cam"), "grad-cam": peers.grad_cam("AblationCAM")},
        lambda _name, _facts: Bound(1.01, 2.0, 1.3), peer_size="small",
    ),
    "ablation-tail": Task(
        "Ablation-CAM where a real tail follows", ("segres", "segres_enc", "unet"),
        {"medcam": one_map("ablation-cam"), "grad-cam": peers.grad_cam("AblationCAM")}, _tail_sweep_bound,
    ),
    "score-cam": Task(
        "Score-CAM, one mask for each of 16 channels", ("segres",),
        {"medcam": one_map("score-cam"), "grad-cam": peers.grad_cam("ScoreCAM"), "torchcam": peers.torchcam("ScoreCAM")},
        _masks_bound, passes=16,
    ),
    "group-cam": Task(
        "Group-CAM, 32 groups", _WHOLE, {"medcam": one_map("group-cam(groups=32)")}, _masks_bound, passes=32,
    ),
    "rise": Task(
        "RISE, 64 masks", _WHOLE, {"medcam": one_map(f"rise(masks={_MASKS})", layer=False)}, _masks_bound, passes=_MASKS,
    ),
    "occlusion": Task(
        "Occlusion sensitivity, 64 positions", _WHOLE,
        {"medcam": _occlusion, "MONAI": peers.monai_occlusion, "captum": peers.captum_occlusion},
        _masks_bound, passes=_MASKS,
    ),
    "integrated-gradients": Task(
        f"Integrated Gradients, {_STEPS} steps", _WHOLE,
        {"medcam": one_map(f"integrated-gradients(steps={_STEPS})", layer=False), "captum": peers.captum_integrated(_STEPS, None),
         "captum, one step a batch": peers.captum_integrated(_STEPS, 1)},
        # Two passes a step; the notes need the scores of the image and of the baseline.
        lambda _name, _facts: Bound(2.0 * _STEPS + 2), passes=_STEPS,
    ),
    "smoothgrad": Task(
        f"SmoothGrad, {_STEPS} samples", _WHOLE,
        {"medcam": one_map(f"smoothgrad(samples={_STEPS})", layer=False), "MONAI": peers.monai_gradient("SmoothGrad", _STEPS)},
        # Two passes a sample, and the clean score.
        lambda _name, _facts: Bound(2.0 * _STEPS + 1), passes=_STEPS,
    ),
    "guided-backpropagation": Task(
        "Guided Backpropagation", _WHOLE,
        {"medcam": one_map("guided-backpropagation", layer=False), "MONAI": peers.monai_gradient("GuidedBackpropGrad"),
         "captum": peers.captum_guided},
        lambda _name, _facts: Bound(2.01),
    ),
    "guided-grad-cam": Task(
        "Guided Grad-CAM", _WHOLE, {"medcam": one_map("guided-grad-cam"), "captum": peers.captum_guided_grad_cam},
        lambda _name, facts: Bound(2.01 + facts.b),
    ),
    "placing": Task(
        "Placing a 16 x 16 x 10 map on 512 x 512 x 300 voxels as an array; the unit is one copy of the result by numpy", ("array",),
        {"medcam": _resample, "scipy zoom, order 1": peers.zoom},
        lambda _name, _facts: Bound(None, 1.1, 1.5), prepare=_placing, plain=lambda ready: ready.result.copy, host_only=True,
    ),
    "placing-tensors": Task(
        "The same as a tensor; the unit is one copy of the result by torch", ("tensor",),
        {"medcam": _on_input, "F.interpolate": peers.interpolate},
        lambda _name, _facts: Bound(None, 1.1, 1.5), prepare=_placing_tensors, plain=lambda ready: ready.result.clone,
    ),
    "windows": Task(
        "Sliding windows, prediction and Grad-CAM; the unit is MONAI's sliding_window_inference", ("segres", "segres_enc", "unet"),
        {"medcam": _windowed}, _windows_bound, prepare=_windows, plain=lambda ready: ready.sweep,
    ),
}
# fmt: on
