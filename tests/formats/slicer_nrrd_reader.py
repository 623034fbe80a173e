"""What 3D Slicer's own library makes of single NRRD files. It runs in a Python that has `slicer-core`, which brings a VTK of its own.

Reads a JSON list of [kind, path] from the file named first, kind being 'volume' or 'segmentation', and writes a JSON list of answers to the
file named second: the place of the largest value, or name, colour, terms and centroid of each segment. Places are RAS.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy


def answer(kind: str, path: str, kept: list) -> object:
    scene = slicer.vtkMRMLScene()
    node = slicer.vtkMRMLScalarVolumeNode() if kind == "volume" else slicer.vtkMRMLSegmentationNode()
    storage = (
        slicer.vtkMRMLVolumeArchetypeStorageNode() if kind == "volume" else slicer.vtkMRMLSegmentationStorageNode()
    )
    kept += [scene, node, storage]
    scene.AddNode(node)
    scene.AddNode(storage)
    storage.SetFileName(path)
    assert storage.ReadData(node), path
    if kind == "volume":
        image = node.GetImageData()
        values = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
        k, j, i = np.unravel_index(int(np.argmax(values)), values.shape)
        matrix = vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(matrix)
        return {"peak": matrix.MultiplyPoint([int(i), int(j), int(k), 1])[:3], "sum": float(values.sum())}
    segmentation = node.GetSegmentation()
    found = []
    for n in range(segmentation.GetNumberOfSegments()):
        name = segmentation.GetNthSegmentID(n)
        segment, labels, matrix = segmentation.GetSegment(name), slicer.vtkOrientedImageData(), vtk.vtkMatrix4x4()
        node.GetBinaryLabelmapRepresentation(name, labels)
        labels.GetImageToWorldMatrix(matrix)
        values = vtk_to_numpy(labels.GetPointData().GetScalars()).reshape(labels.GetDimensions()[::-1])
        index = np.argwhere(values > 0)[:, ::-1].mean(axis=0) + np.array(labels.GetExtent()[::2])
        terms = vtk.mutable("")
        segment.GetTag("TerminologyEntry", terms)
        found.append(
            {
                "name": segment.GetName(),
                "colour": segment.GetColor(),
                "voxels": int((values > 0).sum()),
                "centroid": matrix.MultiplyPoint([*index, 1])[:3],
                "terms": str(terms),
            }
        )
    return found


if __name__ == "__main__":
    kept: list = []
    answers = [answer(kind, path, kept) for kind, path in json.loads(Path(sys.argv[1]).read_text())]
    Path(sys.argv[2]).write_text(json.dumps(answers))
    sys.stderr.flush()
    # Without its window, the library does not take itself apart.
    os._exit(0)
