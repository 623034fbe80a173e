"""A 3D Slicer module that shows where a network looked in the volume that is loaded.

Add the folder of this file under *Edit > Application settings > Modules > Additional module paths* and start 3D Slicer again; the
module is then under *Machine Learning*. `docs/how-to-slicer-module.md` says the rest. Research use only, not for diagnosis.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import ctk
import qt
import slicer
import vtk
from medcam_heatmap_lib import explaining
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

SETTINGS = "MedcamHeatmap"


class MedcamHeatmap(ScriptedLoadableModule):
    """What 3D Slicer's list of modules says."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "Medcam heatmap"
        self.parent.categories = ["Machine Learning"]
        self.parent.dependencies = []
        self.parent.contributors = ["The medcam developers"]
        self.parent.helpText = (
            "Explains a network's score of a volume and lays the heatmap over it. Research use only, not for diagnosis."
        )
        self.parent.acknowledgementText = "medcam: see its repository for licence and references."


class MedcamHeatmapWidget(ScriptedLoadableModuleWidget):
    """The panel: what to explain, and a slider for the colours."""

    def setup(self) -> None:
        ScriptedLoadableModuleWidget.setup(self)
        self.heatmap: Any = None
        box = ctk.ctkCollapsibleButton()
        box.text = "Explain"
        self.layout.addWidget(box)
        form = qt.QFormLayout(box)
        self.volume = slicer.qMRMLNodeComboBox()
        self.volume.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        self.volume.addEnabled = self.volume.removeEnabled = False
        self.volume.setMRMLScene(slicer.mrmlScene)
        form.addRow("Input volume:", self.volume)
        self.python, self.model = ctk.ctkPathLineEdit(), qt.QLineEdit()
        self.python.filters = ctk.ctkPathLineEdit.Files
        self.python.settingKey = f"{SETTINGS}/python"
        self.python.toolTip = "A Python that has medcam: `which python` where `medcam doctor` runs"
        self.model.text = qt.QSettings().value(f"{SETTINGS}/model") or "demo-mri"
        self.model.toolTip = "A MONAI bundle (folder or zip), a .pt2 file, or demo-mri"
        form.addRow("Python with medcam:", self.python)
        form.addRow("Model:", self.model)
        self.method = qt.QComboBox()
        self.method.addItems(list(explaining.METHODS))
        self.method.editable = True
        self.target, self.layer = qt.QLineEdit(), qt.QLineEdit()
        self.target.placeholderText, self.layer.placeholderText = "the predicted class", "the last one before the head"
        for name, widget in (("Method:", self.method), ("Target:", self.target), ("Layer:", self.layer)):
            form.addRow(name, widget)
        self.threshold = ctk.ctkSliderWidget()
        self.threshold.minimum, self.threshold.maximum, self.threshold.singleStep = 0.05, 0.95, 0.05
        self.threshold.value = 0.5
        self.threshold.connect("valueChanged(double)", self.on_threshold)
        form.addRow("Colour from (of the maximum):", self.threshold)
        self.run = qt.QPushButton("Run")
        self.run.connect("clicked(bool)", self.on_run)
        form.addRow(self.run)
        self.told = qt.QLabel("Research use only, not for diagnosis.")
        self.told.wordWrap = True
        form.addRow(self.told)
        self.layout.addStretch(1)

    def on_threshold(self, fraction: float) -> None:
        if self.heatmap is not None and slicer.mrmlScene.IsNodePresent(self.heatmap):
            explaining.set_threshold(self.heatmap, fraction)

    def on_run(self) -> None:
        self.python.addCurrentPathToHistory()
        qt.QSettings().setValue(f"{SETTINGS}/model", self.model.text)
        asked = explaining.Settings(
            self.python.currentPath, self.model.text.strip(), self.method.currentText, self.target.text.strip(),
            self.layer.text.strip(), self.threshold.value,
        )  # fmt: skip
        self.run.enabled, self.told.text = False, "medcam is running."
        try:
            with slicer.util.tryWithErrorDisplay("medcam gave no heatmap.", waitCursor=True):
                self.heatmap = MedcamHeatmapLogic().process(asked, self.volume.currentNode())
        finally:
            self.run.enabled = True
            self.told.text = self.words()

    def words(self) -> str:
        """Return what must be known of the heatmap that is shown."""
        if self.heatmap is None:
            return "Research use only, not for diagnosis."
        target, score, notes = (
            self.heatmap.GetAttribute(name) for name in (explaining.TARGET, explaining.SCORE, explaining.NOTES)
        )
        return f"{target}, score {score}\n{notes}\nResearch use only, not for diagnosis."


class MedcamHeatmapLogic(ScriptedLoadableModuleLogic):
    """What a script may call: `slicer.modules.medcamheatmap` and this class."""

    def process(self, settings: explaining.Settings, volume: Any) -> Any:
        """Explain a volume and return the heatmap's node; the window lives meanwhile."""
        return explaining.explain(settings, volume, between=slicer.app.processEvents)


class MedcamHeatmapTest(ScriptedLoadableModuleTest):
    """Run by *Reload and Test*, or `slicer.selfTests`; it needs MEDCAM_PYTHON, a Python that has medcam."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:  # noqa: N802  the name that 3D Slicer calls
        self.setUp()
        self.test_the_demonstration_heads_lesion_is_found()

    def test_the_demonstration_heads_lesion_is_found(self) -> None:
        python = os.environ["MEDCAM_PYTHON"]
        code = "import medcam; print(medcam.sample_path('mri'))"
        done = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, check=True, env=explaining.environment()
        )
        samples = Path(done.stdout.strip())
        head, lesion = (slicer.util.loadVolume(str(samples / f"head_{name}.nii.gz")) for name in ("flair", "lesion"))
        heatmap = MedcamHeatmapLogic().process(explaining.Settings(python, "demo-mri"), head)
        relevance, mask = slicer.util.arrayFromVolume(heatmap), slicer.util.arrayFromVolume(lesion)
        assert relevance.shape == mask.shape
        assert mask.ravel()[relevance.argmax()] > 0
        there, here = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
        head.GetIJKToRASMatrix(there)
        heatmap.GetIJKToRASMatrix(here)
        apart = [abs(here.GetElement(i, j) - there.GetElement(i, j)) for i in range(3) for j in range(4)]
        assert max(apart) < 1e-3
        self.delayDisplay("Test passed")
