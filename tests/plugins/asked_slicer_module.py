"""Runs the example module in a Python that has 3D Slicer's library, without its window: see test_slicer_module_example.

Arguments: the module's folder, a folder for files, the Python that has medcam. Writes `answer.json` there. What belongs to the window (Qt,
`slicer.app`, the base classes of scripted modules) is doubled; nodes, storage, displays and the scene are 3D Slicer's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import types
import unittest
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import slicer
import slicer.util
import vtk

sys.path[:0] = [sys.argv[1], str(Path(__file__).parents[1])]
from formats.slicer_reader import Application  # noqa: E402

folder, python = Path(sys.argv[2]), sys.argv[3]
application = Application(folder)
events: list[int] = []
slicer.mrmlScene = application.scene
slicer.app = types.SimpleNamespace(processEvents=lambda: events.append(1))
slicer.qMRMLNodeComboBox = MagicMock
slicer.util.loadVolume = lambda path: application.modules["Volumes"].AddArchetypeVolume(
    path, Path(path).name.split(".")[0]
)


@contextlib.contextmanager
def with_error_display(message: str, waitCursor: bool = False):  # noqa: N803  3D Slicer's own name
    try:
        yield
    except RuntimeError as error:
        shown.append(f"{message} {error}")


shown: list[str] = []
slicer.util.tryWithErrorDisplay = with_error_display


class Base:
    def __init__(self, parent: object = None) -> None:
        self.parent, self.layout = parent, MagicMock()

    def setup(self) -> None:
        pass


class Test(unittest.TestCase):
    def delayDisplay(self, message: str) -> None:
        shown.append(message)


class Widgets(types.ModuleType):
    """In place of Qt: a new widget whenever one is made."""

    def __getattr__(self, name: str):
        return MagicMock(side_effect=lambda *given: MagicMock())


bases = types.ModuleType("slicer.ScriptedLoadableModule")
bases.ScriptedLoadableModule = bases.ScriptedLoadableModuleWidget = bases.ScriptedLoadableModuleLogic = Base
bases.ScriptedLoadableModuleTest = Test
sys.modules |= {"slicer.ScriptedLoadableModule": bases, "qt": Widgets("qt"), "ctk": Widgets("ctk")}

import MedcamHeatmap as module  # noqa: E402

explaining = module.explaining


def matrix(node) -> list:
    found = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(found)
    return [[found.GetElement(i, j) for j in range(4)] for i in range(4)]


def told(heatmap, volume) -> dict:
    values, display = slicer.util.arrayFromVolume(heatmap), heatmap.GetDisplayNode()
    composites = application.nodes("vtkMRMLSliceCompositeNode")
    peak = np.unravel_index(int(values.argmax()), values.shape)[::-1]
    return {
        "matrix": matrix(heatmap), "shape": list(values.shape[::-1]), "peak": [int(i) for i in peak], "maximum": float(values.max()),
        "name": heatmap.GetName(), "threshold": display.GetLowerThreshold() if display.GetApplyThreshold() else None,
        "colours": display.GetColorNode().GetName(), "transform": heatmap.GetTransformNodeID() == volume.GetTransformNodeID(),
        "foreground": [c.GetForegroundVolumeID() == heatmap.GetID() for c in composites],
        "background": [c.GetBackgroundVolumeID() == volume.GetID() for c in composites],
        "target": heatmap.GetAttribute(explaining.TARGET), "notes": heatmap.GetAttribute(explaining.NOTES),
        "views": [matrix_of_slice(node) for node in application.nodes("vtkMRMLSliceNode")],
    }  # fmt: skip


def matrix_of_slice(node) -> list:
    return [node.GetSliceToRAS().GetElement(i, 3) for i in range(3)]


answer: dict = {}
# As a user would: the panel, with choices, and Run.
module.MedcamHeatmap(MagicMock())
widget = module.MedcamHeatmapWidget()
widget.setup()
head = slicer.util.loadVolume(str(folder / "head_flair.nii.gz"))
widget.python.currentPath, widget.model.text, widget.method.currentText = python, " demo-mri ", "grad-cam"
widget.target.text, widget.layer.text, widget.threshold.value = "", "", 0.4
widget.volume.currentNode = lambda: head
widget.on_run()
answer["first"] = told(widget.heatmap, head)
answer["words"], answer["events"], answer["errors"] = widget.told.text, len(events), list(shown)
widget.on_threshold(0.8)
answer["raised"] = widget.heatmap.GetDisplayNode().GetLowerThreshold()

# Under a transform, the heatmap goes where the volume goes.
transform = application.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
moved = vtk.vtkMatrix4x4()
moved.SetElement(0, 3, 30.0)
transform.SetMatrixTransformToParent(moved)
head.SetAndObserveTransformNodeID(transform.GetID())
second = module.MedcamHeatmapLogic().process(explaining.Settings(python, "demo-mri", threshold=0.4), head)
answer["second"] = told(second, head)
head.SetAndObserveTransformNodeID(None)

# What goes wrong is told in words.
shown.clear()
widget.python.currentPath, widget.target.text = python, "9"
widget.on_run()
widget.python.currentPath = str(folder / "no-python")
widget.on_run()
widget.volume.currentNode = lambda: None
widget.on_run()
answer["wrong"] = list(shown)

# The module's own test.
shown.clear()
os.environ["MEDCAM_PYTHON"] = python
module.MedcamHeatmapTest("runTest").test_the_demonstration_heads_lesion_is_found()
answer["own"] = list(shown)
(folder / "answer.json").write_text(json.dumps(answer))
sys.stderr.flush()
# Without its window, the library does not take itself apart.
os._exit(0)
