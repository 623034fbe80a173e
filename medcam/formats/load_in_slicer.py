"""Show heatmaps that medcam wrote beside this script, in 3D Slicer:

    Slicer --python-script load_in_slicer.py             all of them, the first on top
    Slicer --python-script load_in_slicer.py NAME        the one whose files begin with NAME

Each is loaded as its NAME_slicer.json says: the image in grey, relevance in colours from the threshold on, masks, and slice views through
the peak. It runs inside 3D Slicer 5 and needs nothing else. Research use only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import slicer  # type: ignore[import-not-found]
import vtk  # type: ignore[import-not-found]

HERE = Path(__file__).resolve().parent
ENDING = "_slicer.json"
FOUR_UP, ONE_SLICE = 3, 6


def main() -> None:
    """Load what was asked for, the first last, so that it is on top."""
    # A leading dot is what a killed program left unfinished.
    every = [path.name[: -len(ENDING)] for path in sorted(HERE.glob("[!.]*" + ENDING))]
    wanted = [name for name in sys.argv[1:] if name in every] or every
    if not wanted:
        raise RuntimeError(f"there is no heatmap for 3D Slicer (*{ENDING}) beside {Path(__file__).name}")
    for name in reversed(wanted):
        load(json.loads((HERE / (name + ENDING)).read_text(encoding="utf-8")))


def load(look: dict[str, Any]) -> None:
    """Load one heatmap with its image and masks, and turn the slice views to it."""
    if "scene" in look:
        # What NIfTI files cannot say to 3D Slicer, the tilt of a gantry, a scene does.
        slicer.util.loadScene(str(HERE / look["scene"]), {"clear": False})
        return
    image = volume(look["image"], look["image_name"])
    low, high = look["window"]
    display = image.GetDisplayNode()
    display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
    display.SetAutoWindowLevel(0)
    display.SetWindowLevel(high - low, (low + high) / 2)
    heatmap = volume(look["heatmap"], look["heatmap_name"])
    display = heatmap.GetDisplayNode()
    display.SetAndObserveColorNodeID(colours(look["colours"]).GetID())
    display.SetAutoWindowLevel(0)
    display.SetWindowLevel(look["highest"], look["highest"] / 2)
    display.SetApplyThreshold(1)
    display.SetThreshold(look["lowest"], max(2 * look["highest"], 1.0))
    for mask in look["masks"]:
        segmentation(mask, image)
    if look["peak"]:
        point(look["peak"])
    show(look, image, heatmap)


def volume(file: str, name: str) -> Any:
    """Return the node of a volume that lies beside this script."""
    return slicer.util.loadVolume(str(HERE / file), {"name": name, "show": False})


def colours(table: list[list[float]]) -> Any:
    """Return a colour table of its own for relevance, opaque: the views say how much shows through."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLColorTableNode", "colours of relevance")
    node.SetTypeToUser()
    node.SetNumberOfColors(len(table))
    for n, (red, green, blue) in enumerate(table):
        node.SetColor(n, f"{n / (len(table) - 1):.3f}", red, green, blue, 1.0)
    return node


def segmentation(mask: dict[str, Any], image: Any) -> None:
    """Load a mask as a segmentation, outlined or hidden."""
    node = slicer.util.loadSegmentation(str(HERE / mask["file"]), {"name": mask["name"]})
    node.SetReferenceImageGeometryParameterFromVolumeNode(image)
    segments = node.GetSegmentation()
    for n in range(segments.GetNumberOfSegments()):
        segments.GetNthSegment(n).SetName(mask["name"])
        segments.GetNthSegment(n).SetColor(*mask["colour"])
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetVisibility2DFill(False)
    display.SetVisibility(mask["shown"])


def point(place: list[float]) -> None:
    """Mark the peak."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "peak")
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetGlyphTypeFromString("CrossDot2D")
    node.GetDisplayNode().SetGlyphScale(2)
    node.GetDisplayNode().SetSelectedColor(0, 0.6, 1)
    node.AddControlPoint(vtk.vtkVector3d(*place), "peak")
    node.SetLocked(True)


def show(look: dict[str, Any], image: Any, heatmap: Any) -> None:
    """Lay the heatmap over the image in the slice views, and move these to the peak."""
    scene = slicer.mrmlScene
    layout = scene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    if layout is not None:
        layout.SetViewArrangement(FOUR_UP if len(look["views"]) > 1 else ONE_SLICE)
    for name, place in look["views"].items():
        composite = scene.GetNodeByID(f"vtkMRMLSliceCompositeNode{name}")
        composite.SetBackgroundVolumeID(image.GetID())
        composite.SetForegroundVolumeID(heatmap.GetID())
        composite.SetForegroundOpacity(look["opacity"])
        view = scene.GetNodeByID(f"vtkMRMLSliceNode{name}")
        view.GetSliceToRAS().DeepCopy([number for row in place for number in row])
        view.UpdateMatrices()
        rows = view.GetDimensions()[1] / view.GetDimensions()[0]
        side = look["field_of_view_mm"]
        view.SetFieldOfView(side * max(1, 1 / rows), side * max(1, rows), view.GetFieldOfView()[2])
        if not look["oriented"]:
            for n in range(6):
                view.SetAxisLabel(n, " ")


if __name__ == "__main__":
    main()
