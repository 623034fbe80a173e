"""What 3D Slicer's own library makes of files. It runs in a Python that has `slicer-core`, which brings a VTK of its own.

Reads a JSON list of requests from the file named first, and writes a JSON list of answers to the file named second. A request names a
`scene` (.mrb), a `folder` for pictures, `points` (RAS) at which to sample both volumes, and for each of `views` the size in pixels and the
field of view in mm. Each view's blend of image and heatmap is saved as `folder/NAME.npy`, rows from the top.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

VIEWS = ("Red", "Yellow", "Green")


class Application:
    """What of 3D Slicer's application reading and showing a scene takes, without windows."""

    def __init__(self, folder: Path) -> None:
        self.logic, self.scene = slicer.vtkMRMLApplicationLogic(), slicer.vtkMRMLScene()
        self.logic.SetHomeDirectory(str(folder))
        self.logic.SetShareDirectory("share")
        self.logic.SetMRMLScene(self.scene)
        self.slice_logics = vtk.vtkCollection()
        self.logic.SetSliceLogics(self.slice_logics)
        remote = slicer.vtkMRMLRemoteIOLogic()
        colours = slicer.vtkSlicerColorLogic()
        modules = {
            "Colors": colours,
            "Segmentations": slicer.vtkSlicerSegmentationsModuleLogic(),
            "Texts": slicer.vtkSlicerTextsLogic(),
            "Markups": slicer.vtkSlicerMarkupsLogic(),
            "Volumes": slicer.vtkSlicerVolumesLogic(),
        }
        self.logics = [remote, *modules.values()]
        for logic in self.logics:
            logic.SetMRMLApplicationLogic(self.logic)
            logic.SetMRMLScene(self.scene)
        for name, logic in modules.items():
            self.logic.SetModuleLogic(name, logic)
        self.modules = modules
        cache = folder / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        remote.GetCacheManager().SetRemoteCacheDirectory(str(cache))
        remote.AddDataIOToScene()
        self.logic.SetColorLogic(colours)
        layout = slicer.vtkMRMLLayoutNode()
        layout.SetSingletonTag("vtkMRMLLayoutNode")
        self.scene.AddNode(layout)
        self.views = {}
        for name in VIEWS:
            view = slicer.vtkMRMLSliceLogic()
            view.SetMRMLApplicationLogic(self.logic)
            view.SetMRMLScene(self.scene)
            view.AddSliceNode(name)
            self.slice_logics.AddItem(view)
            self.views[name] = view

    def nodes(self, kind: str) -> list:
        found = self.scene.GetNodesByClass(kind)
        return [found.GetItemAsObject(n) for n in range(found.GetNumberOfItems())]


class Files:
    """In place of Qt's part of 3D Slicer that `slicer.util` asks to load a file; the nodes that read it are Slicer's own."""

    def __init__(self, application: Application) -> None:
        self.application = application

    def coreIOManager(self) -> Files:
        return self

    def loadNodes(self, kind: str, properties: dict, loaded: vtk.vtkCollection, messages: object) -> bool:
        scene, path = self.application.scene, properties["fileName"]
        if kind == "SceneFile":
            return bool(scene.ReadFromMRB(path, properties["clear"], messages))
        if kind == "VolumeFile":
            node = self.application.modules["Volumes"].AddArchetypeVolume(path, properties["name"])
        else:
            node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", properties["name"])
            storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
            storage.SetFileName(path)
            assert storage.ReadData(node)
        loaded.AddItem(node)
        return node is not None


def run_script(path: Path, application: Application, names: list[str]) -> bool:
    """Run a script as `Slicer --python-script` does, with the real `slicer.util`."""
    import slicer.util

    slicer.app, slicer.mrmlScene, slicer.util = Files(application), application.scene, slicer.util
    sys.argv = [str(path), *names]
    runpy.run_path(str(path), run_name="__main__")
    return True


def answer(request: dict, application: Application) -> dict:
    folder = Path(request["folder"])
    messages = slicer.vtkMRMLMessageCollection()
    if "script" in request:
        read = run_script(Path(request["script"]), application, request["names"])
    else:
        read = application.scene.ReadFromMRB(str(Path(request["scene"]).resolve()), False, messages)
    views = {name: view(application.views[name], shape, folder) for name, shape in request["views"].items()}
    return {
        "read": bool(read),
        "messages": messages.GetAllMessagesAsString(),
        "volumes": [volume(node, request["points"]) for node in application.nodes("vtkMRMLScalarVolumeNode")],
        "segmentations": [each for node in application.nodes("vtkMRMLSegmentationNode") for each in segments(node)],
        "points": [point(node) for node in application.nodes("vtkMRMLMarkupsFiducialNode")],
        "texts": [node.GetText() for node in application.nodes("vtkMRMLTextNode")],
        "layout": [node.GetViewArrangement() for node in application.nodes("vtkMRMLLayoutNode")],
        "views": views,
    }


def volume(node: slicer.vtkMRMLScalarVolumeNode, points: list) -> dict:
    display, image = node.GetDisplayNode(), node.GetImageData()
    colours = display.GetColorNode()
    table = colours.GetLookupTable()
    return {
        "name": node.GetName(),
        "type": image.GetScalarTypeAsString(),
        "shape": list(image.GetDimensions()),
        "window": [display.GetWindow(), display.GetLevel()],
        "automatic": bool(display.GetAutoWindowLevel()),
        "threshold": display.GetLowerThreshold() if display.GetApplyThreshold() else None,
        "colours": colours.GetName(),
        "table": [table.GetTableValue(n) for n in range(table.GetNumberOfTableValues())],
        "values": [sample(node, place) for place in points],
    }


def sample(node: slicer.vtkMRMLScalarVolumeNode, place: list) -> float:
    """Return the value of the voxel at a place, which may lie under a transform."""
    stored_from_world, index_from_stored = vtk.vtkGeneralTransform(), vtk.vtkMatrix4x4()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(None, node.GetParentTransformNode(), stored_from_world)
    node.GetRASToIJKMatrix(index_from_stored)
    index = index_from_stored.MultiplyPoint([*stored_from_world.TransformPoint(place), 1])[:3]
    assert np.allclose(index, np.rint(index), atol=1e-3), index
    return node.GetImageData().GetScalarComponentAsDouble(*(round(n) for n in index), 0)


def segments(node: slicer.vtkMRMLSegmentationNode) -> list[dict]:
    segmentation, display = node.GetSegmentation(), node.GetDisplayNode()
    found = []
    for n in range(segmentation.GetNumberOfSegments()):
        name = segmentation.GetNthSegmentID(n)
        segment = segmentation.GetSegment(name)
        labels = slicer.vtkOrientedImageData()
        node.GetBinaryLabelmapRepresentation(name, labels)
        world_from_index = vtk.vtkMatrix4x4()
        labels.GetImageToWorldMatrix(world_from_index)
        values = vtk_to_numpy(labels.GetPointData().GetScalars()).reshape(labels.GetDimensions()[::-1])
        index = np.argwhere(values > 0)[:, ::-1].mean(axis=0) + np.array(labels.GetExtent()[::2])
        world_from_stored = vtk.vtkGeneralTransform()
        slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(node.GetParentTransformNode(), None, world_from_stored)
        found.append(
            {
                "name": segment.GetName(),
                "segmentation": node.GetName(),
                "colour": segment.GetColor(),
                "voxels": int((values > 0).sum()),
                "centroid": world_from_stored.TransformPoint(world_from_index.MultiplyPoint([*index, 1])[:3]),
                "shown": bool(display.GetVisibility()),
                "surface": bool(segmentation.ContainsRepresentation("Closed surface")),
            }
        )
    return found


def point(node: slicer.vtkMRMLMarkupsFiducialNode) -> dict:
    place = [0.0, 0.0, 0.0]
    node.GetNthControlPointPositionWorld(0, place)
    return {"name": node.GetName(), "place": place, "label": node.GetNthControlPointLabel(0)}


def view(logic: slicer.vtkMRMLSliceLogic, shape: dict, folder: Path) -> dict:
    """Show a view in so many pixels and millimetres, as it stands in the scene, and save what image and heatmap blend to."""
    node, composite = logic.GetSliceNode(), logic.GetSliceCompositeNode()
    matrix = node.GetSliceToRAS()
    stands = {
        "ras_from_slice": [[matrix.GetElement(i, j) for j in range(4)] for i in range(4)],
        "field_of_view": list(node.GetFieldOfView()),
        "orientation": node.GetOrientationString(),
        "opacity": composite.GetForegroundOpacity(),
        "background": logic.GetBackgroundLayer().GetVolumeNode().GetName(),
        "foreground": logic.GetForegroundLayer().GetVolumeNode().GetName(),
        "letters": [node.GetAxisLabel(n) for n in range(6)],
    }
    columns, rows = shape["pixels"]
    node.SetDimensions(columns, rows, 1)
    node.SetFieldOfView(*(shape["mm"] or node.GetFieldOfView()[:2]), 1)
    blend = logic.GetBlend()
    blend.Update()
    pixels = vtk_to_numpy(blend.GetOutput().GetPointData().GetScalars()).reshape(rows, columns, -1)
    # Where there is no image, nothing is opaque, and the view shows its black background.
    np.save(
        folder / f"{node.GetName()}.npy", np.where(pixels[::-1, :, 3:] > 0, pixels[::-1, :, :3], 0).astype(np.uint8)
    )
    return stands


if __name__ == "__main__":
    asked, told = map(Path, sys.argv[1:])
    requests = json.loads(asked.read_text())
    # Kept until the end, and beyond: without its window, the library does not take itself apart.
    applications = [Application(Path(request["folder"])) for request in requests]
    answers = [answer(request, application) for request, application in zip(requests, applications, strict=True)]
    told.write_text(json.dumps(answers))
    sys.stderr.flush()
    os._exit(0)
