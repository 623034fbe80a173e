"""Explain a volume that is loaded in 3D Slicer: medcam runs in a Python of its own, and its heatmap is laid over the volume.

Nothing here needs 3D Slicer's window.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer

METHODS = (
    "grad-cam",
    "layer-cam",
    "hires-cam",
    "grad-cam++",
    "occlusion",
    "rise",
    "integrated-gradients",
    "smoothgrad",
)
TARGET, SCORE, NOTES = "medcam.target", "medcam.score", "medcam.notes"


@dataclass(frozen=True)
class Settings:
    """What is asked of medcam.

    Parameters
    ----------
    python
        A Python that has medcam: `which python` where `medcam doctor` runs.
    model, method, target, layer
        As `medcam explain` takes them; an empty target is the predicted class, an empty layer the default one.
    threshold
        The fraction of the heatmap's maximum below which nothing is coloured.
    """

    python: str
    model: str
    method: str = "grad-cam"
    target: str = ""
    layer: str = ""
    threshold: float = 0.5


def explain(settings: Settings, volume: Any, *, between: Callable[[], object] = lambda: None) -> Any:
    """Explain the network's score of a volume node, and return the node of the heatmap, shown over it.

    Parameters
    ----------
    between
        Called ten times a second while medcam runs, so that the window lives. What it raises ends medcam.

    Raises
    ------
    RuntimeError
        If there is no volume, medcam does not run, or it refuses; in its words.
    """
    if volume is None or volume.GetImageData() is None:
        raise RuntimeError("choose a volume that holds an image")
    with tempfile.TemporaryDirectory(prefix="medcam-") as folder:
        image = write_volume(volume, Path(folder) / "image.nrrd")
        told = run_medcam(command(settings, image, Path(folder) / "out"), between)
        (look,) = [path for path in told["files"] if path.endswith("_slicer.json")]
        heatmap = load_heatmap(json.loads(Path(look).read_text(encoding="utf-8")), Path(look).parent, volume)
    heatmap.SetAttribute(TARGET, told["target"])
    heatmap.SetAttribute(SCORE, f"{told['score']:.4g}")
    heatmap.SetAttribute(NOTES, "\n".join(told["notes"]))
    return heatmap


def command(settings: Settings, image: Path, folder: Path) -> list[str]:
    """Return the command that explains an image into a folder."""
    asked = [
        settings.python,
        "-m",
        "medcam",
        "explain",
        str(image),
        "--model",
        settings.model,
        "--method",
        settings.method,
    ]
    for option, value in (("--target", settings.target), ("--layer", settings.layer)):
        asked += [option, value] if value else []
    return [
        *asked, "--threshold", f"{settings.threshold:g}", "--formats", "nifti,slicer-script", "--out", str(folder), "--json",
        "--quiet",
    ]  # fmt: skip


def run_medcam(asked: list[str], between: Callable[[], object]) -> dict[str, Any]:
    """Run medcam and return what it tells.

    Raises
    ------
    RuntimeError
        If it does not run, or refuses.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        try:
            process = subprocess.Popen(asked, stdout=out, stderr=log, env=environment())
        except OSError as error:
            raise RuntimeError(f"there is no Python at {asked[0]}: {error.strerror}") from error
        try:
            while process.poll() is None:
                between()
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        out.seek(0)
        log.seek(0)
        try:
            told = json.loads(out.read())
        except ValueError as error:
            raise RuntimeError(f"medcam did not run in {asked[0]}: {log.read()[-400:].strip()}") from error
    if not told["ok"]:
        raise RuntimeError(told["error"])
    return told


def environment() -> dict[str, str]:
    """Return the environment for another Python: 3D Slicer's own would make it load 3D Slicer's libraries."""
    import slicer.util

    started = getattr(getattr(slicer, "app", None), "startupEnvironment", None)
    given = dict(slicer.util.startupEnvironment()) if callable(started) else dict(os.environ)
    return {name: value for name, value in given.items() if name not in ("PYTHONHOME", "PYTHONNOUSERSITE")}


def write_volume(volume: Any, path: Path) -> Path:
    """Write a volume node's voxels where they lie without its transform."""
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    if not storage.WriteData(volume):
        raise RuntimeError(f"3D Slicer could not write the volume {volume.GetName()} to {path}")
    return path


def load_heatmap(look: dict[str, Any], folder: Path, volume: Any) -> Any:
    """Return the node of a heatmap that medcam wrote, coloured from the threshold on and laid over its volume."""
    if "heatmap" not in look:
        raise RuntimeError(
            "the slices of this volume lie askew (a tilted gantry); resample it, or open what `medcam explain --formats slicer` writes"
        )
    scene = volume.GetScene()
    heatmap = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", look["heatmap_name"])
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(folder / look["heatmap"]))
    if not storage.ReadData(heatmap):
        scene.RemoveNode(heatmap)
        raise RuntimeError(f"3D Slicer could not read {look['heatmap']}")
    heatmap.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    heatmap.CreateDefaultDisplayNodes()
    display = heatmap.GetDisplayNode()
    display.SetAndObserveColorNodeID(colours(scene, look["colours"]).GetID())
    display.SetAutoWindowLevel(0)
    display.SetWindowLevel(look["highest"], look["highest"] / 2)
    display.SetApplyThreshold(1)
    display.SetThreshold(look["lowest"], max(2 * look["highest"], 1.0))
    show(scene, volume, heatmap, look)
    return heatmap


def colours(scene: Any, table: list[list[float]]) -> Any:
    """Return a colour table of relevance, the one that is there already if there is one."""
    name = "colours of relevance"
    node = scene.GetFirstNode(name, "vtkMRMLColorTableNode")
    if node is None:
        node = scene.AddNewNodeByClass("vtkMRMLColorTableNode", name)
        node.SetTypeToUser()
        node.SetNumberOfColors(len(table))
        for n, (red, green, blue) in enumerate(table):
            node.SetColor(n, f"{n / (len(table) - 1):.3f}", red, green, blue, 1.0)
    return node


def set_threshold(heatmap: Any, fraction: float) -> None:
    """Colour a heatmap from a fraction of its maximum on."""
    highest = heatmap.GetDisplayNode().GetWindow()
    heatmap.GetDisplayNode().SetThreshold(fraction * highest, max(2 * highest, 1.0))


def show(scene: Any, volume: Any, heatmap: Any, look: dict[str, Any]) -> None:
    """Lay the heatmap over its volume in the slice views, and move these to the peak."""
    composites = scene.GetNodesByClass("vtkMRMLSliceCompositeNode")
    for n in range(composites.GetNumberOfItems()):
        composite = composites.GetItemAsObject(n)
        composite.SetBackgroundVolumeID(volume.GetID())
        composite.SetForegroundVolumeID(heatmap.GetID())
        composite.SetForegroundOpacity(look["opacity"])
    if look["peak"] is None:
        return
    peak = [0.0, 0.0, 0.0]
    heatmap.TransformPointToWorld(look["peak"], peak)
    views = scene.GetNodesByClass("vtkMRMLSliceNode")
    for n in range(views.GetNumberOfItems()):
        views.GetItemAsObject(n).JumpSliceByCentering(*peak)
