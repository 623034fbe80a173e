"""Draw the slice views of a scene as 3D Slicer opens it, without Slicer: by its own library and in software.

    pip install slicer-core        # in a virtual environment of its own: it brings a VTK of its own
    python docs/make_slicer_picture.py results/MR_s4_..._gradcam.mrb picture.png

Draws what the views hold: the blend of image and relevance, outlines of segmentations, the peak, ruler and orientation marker. It needs EGL
or OSMesa to draw with, and takes a few seconds.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "formats"))

import numpy as np
import slicer
import vtk
from PIL import Image
from slicer_reader import Application
from vtk.util.numpy_support import vtk_to_numpy

SIDE, GAP = 440, 6
DRAWN_BY = (
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
)


def draw(scene: Path, picture: Path) -> None:
    """Write a picture of a scene's slice views, side by side."""
    with tempfile.TemporaryDirectory() as folder:
        application = Application(Path(folder))
        messages = slicer.vtkMRMLMessageCollection()
        if not application.scene.ReadFromMRB(str(scene.resolve()), False, messages):
            raise SystemExit(messages.GetAllMessagesAsString())
    views = [view for view in application.views.values() if view.GetSliceCompositeNode().GetForegroundVolumeID()]
    managers = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
    managers.SetMRMLApplicationLogic(application.logic)
    for name in DRAWN_BY:
        managers.RegisterDisplayableManager(name)
    drawn = [_pixels(view, managers) for view in views]
    gap = np.zeros((SIDE, GAP, 3), np.uint8)
    row = [part for pixels in drawn for part in (gap, pixels)][1:]
    Image.fromarray(np.hstack(row)).save(picture, optimize=True)


def _pixels(view: slicer.vtkMRMLSliceLogic, managers: slicer.vtkMRMLSliceViewDisplayableManagerFactory) -> np.ndarray:
    node = view.GetSliceNode()
    node.SetDimensions(SIDE, SIDE, 1)
    window, renderer = vtk.vtkRenderWindow(), vtk.vtkRenderer()
    window.SetOffScreenRendering(1)
    window.SetMultiSamples(0)
    window.SetSize(SIDE, SIDE)
    window.AddRenderer(renderer)
    interactor = vtk.vtkRenderWindowInteractor()
    interactor.SetRenderWindow(window)
    blend, flat, actor = view.GetBlend(), vtk.vtkImageMapper(), vtk.vtkActor2D()
    flat.SetInputConnection(blend.GetOutputPort())
    flat.SetColorWindow(255)
    flat.SetColorLevel(127.5)
    actor.SetMapper(flat)
    renderer.AddViewProp(actor)
    managers.InstantiateDisplayableManagers(renderer).SetMRMLDisplayableNode(node)
    blend.Update()
    window.Render()
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.ReadFrontBufferOff()
    grab.Update()
    pixels = vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars()).reshape(SIDE, SIDE, -1)
    return pixels[::-1, :, :3].copy()


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stderr.flush()
    # Without its windows, the library does not take itself apart.
    os._exit(0)
