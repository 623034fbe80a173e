"""The text of a 3D Slicer scene: its nodes, and how they refer to each other and to the files beside them.

References
----------
3D Slicer, developer guide, MRML overview. A scene bundle (.mrb) is a zip of one folder, which holds one scene (.mrml) and its files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

import numpy as np
from jaxtyping import Float

from medcam.formats.slicer_look import Look

# Of Slicer's layouts: four views, and the red slice view alone.
_FOUR_UP, _ONE_SLICE = 3, 6
# The file format that this is written in, not the program: any Slicer 5 reads it without complaint.
_VERSION = "Slicer 5.0.0 0"
_TRANSFORM, _COLOURS, _GREY = "vtkMRMLLinearTransformNode1", "vtkMRMLColorTableNode1", "vtkMRMLColorTableNodeGrey"
_IMAGE, _HEATMAP = "vtkMRMLScalarVolumeNode1", "vtkMRMLScalarVolumeNode2"
# Neither grey nor among the colours of relevance.
_PEAK_COLOUR = "0 0.6 1"
# What XML cannot hold.
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Item:
    """Something in the scene that lies in a file of its own: what it is called, and the file's path from the scene."""

    name: str
    file: str


@dataclass(frozen=True, eq=False)
class Scene:
    """What a scene holds.

    Parameters
    ----------
    peak
        The point of the hottest voxel, or None.
    mask, lesion
        Segmentations, or None. The lesion is outlined; the mask is hidden at first, for the colours end where it does.
    about
        All that is known of the heatmap, as text.
    world_from_stored
        What takes the places that the files say to the true ones, RAS, or None where they are the same.
    """

    look: Look
    image: Item
    heatmap: Item
    colours: Item
    peak: Item | None
    mask: Item | None
    lesion: Item | None
    about: str
    world_from_stored: Float[np.ndarray, "4 4"] | None


def scene_text(scene: Scene) -> str:
    """Return the scene as MRML."""
    tilted = scene.world_from_stored is not None
    nodes = [_selection(), _layout(scene.look), *_views(scene.look)]
    if scene.world_from_stored is not None:
        matrix = {"matrixTransformToParent": _numbers(scene.world_from_stored)}
        nodes.append(_node("LinearTransform", _TRANSFORM, {"name": "tilt of the slices", **matrix}))
    nodes += [*_colour_table(scene.colours), *_image(scene, tilted), *_heatmap(scene, tilted)]
    if scene.mask is not None:
        nodes += _segmentation(scene.mask, 1, tilted, visibility=False)
    if scene.lesion is not None:
        nodes += _segmentation(scene.lesion, 2, tilted, visibility=True)
    if scene.peak is not None:
        nodes += _point(scene.peak)
    nodes.append(_node("Text", "vtkMRMLTextNode1", {"name": "about this heatmap", "text": scene.about, "encoding": 1}))
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', f'<MRML version="{_VERSION}">', *nodes, "</MRML>", ""])


def _node(kind: str, identity: str, values: Mapping[str, object]) -> str:
    words = [
        f"{name}={quoteattr(_NO_XML.sub(' ', str(value).lower() if isinstance(value, bool) else str(value)))}"
        for name, value in {"id": identity, **values}.items()
    ]
    return f"<{kind} {' '.join(words)}></{kind}>"


def _numbers(values: Float[np.ndarray, "..."]) -> str:
    return " ".join(repr(float(value)) for value in values.ravel())


def _references(references: Mapping[str, str], *, tilted: bool) -> dict[str, str]:
    """Return how a node refers to others: in one list, and as older versions did, one by one."""
    every = {**references, "transform": _TRANSFORM} if tilted else dict(references)
    return {
        "references": "".join(f"{role}:{identity};" for role, identity in every.items()),
        **{
            f"{role}NodeRef": identity
            for role, identity in every.items()
            if role in ("display", "storage", "transform")
        },
    }


def _selection() -> str:
    active = {"activeVolumeID": _IMAGE, "secondaryVolumeID": _HEATMAP}
    return _node("Selection", "vtkMRMLSelectionNodeSingleton", {"singletonTag": "Singleton", **active})


def _layout(look: Look) -> str:
    arrangement = _FOUR_UP if len(look.views) > 1 else _ONE_SLICE
    return _node(
        "Layout",
        "vtkMRMLLayoutNodevtkMRMLLayoutNode",
        {"singletonTag": "vtkMRMLLayoutNode", "currentViewArrangement": arrangement},
    )


def _views(look: Look) -> list[str]:
    """Return each view's node, and the one that says what it shows."""
    marks = {
        "AxisLabels": "L;R;P;A;I;S" if look.oriented else " ; ; ; ; ; ",
        "orientationMarkerType": "axes" if look.oriented else "none",
        "rulerType": "thin" if look.spaced else "none",
    }
    size = f"{look.field_of_view_mm!r} {look.field_of_view_mm!r} {look.spacing_mm!r}"
    shown = {"backgroundVolumeID": _IMAGE, "foregroundVolumeID": _HEATMAP}
    references = f"backgroundVolume:{_IMAGE};foregroundVolume:{_HEATMAP};"
    nodes = []
    for view in look.views:
        named = {"name": view.name, "layoutName": view.name, "singletonTag": view.name}
        preset = {} if view.preset is None else {"orientation": view.preset}
        place = {"sliceToRAS": _numbers(view.ras_from_slice), **preset, "fieldOfView": size, "dimensions": "256 256 1"}
        nodes.append(_node("Slice", f"vtkMRMLSliceNode{view.name}", {**named, **place, **marks}))
        composite = {"references": references, **shown, "foregroundOpacity": look.opacity, "compositing": 0}
        nodes.append(_node("SliceComposite", f"vtkMRMLSliceCompositeNode{view.name}", {**named, **composite}))
    return nodes


def _colour_table(colours: Item) -> list[str]:
    stored = _references({"storage": "vtkMRMLColorTableStorageNode1"}, tilted=False)
    table = {"name": colours.name, "type": 14, "numcolors": 256, **stored}
    return [_node("ColorTable", _COLOURS, table), _file("ColorTableStorage", 1, colours)]


def _image(scene: Scene, tilted: bool) -> list[str]:
    low, high = scene.look.window
    display = {"colorNodeID": _GREY, "window": high - low, "level": (low + high) / 2}
    return _volume(scene.image, 1, display, tilted)


def _heatmap(scene: Scene, tilted: bool) -> list[str]:
    """Return the heatmap: colours from 0 to the maximum, and nothing where it is below the threshold."""
    lowest, highest = scene.look.lowest, scene.look.highest
    display = {
        "colorNodeID": _COLOURS, "window": highest, "level": highest / 2,
        "applyThreshold": 1, "lowerThreshold": lowest, "upperThreshold": max(2 * highest, 1.0),
    }  # fmt: skip
    return _volume(scene.heatmap, 2, display, tilted)


def _volume(item: Item, number: int, display: Mapping[str, object], tilted: bool) -> list[str]:
    identity = f"vtkMRMLScalarVolumeDisplayNode{number}"
    storage = f"vtkMRMLVolumeArchetypeStorageNode{number}"
    fixed = {"name": f"display {number}", "autoWindowLevel": 0, "autoThreshold": 0, "interpolate": 1}
    refers = _references({"display": identity, "storage": storage}, tilted=tilted)
    return [
        _node("VolumeDisplay", identity, {**fixed, "references": f"color:{display['colorNodeID']};", **display}),
        _file("VolumeArchetypeStorage", number, item),
        _node("Volume", f"vtkMRMLScalarVolumeNode{number}", {"name": item.name, **refers}),
    ]


def _segmentation(item: Item, number: int, tilted: bool, *, visibility: bool) -> list[str]:
    identity = f"vtkMRMLSegmentationDisplayNode{number}"
    refers = _references({"display": identity, "storage": f"vtkMRMLSegmentationStorageNode{number}"}, tilted=tilted)
    outline = {
        "name": f"outline {number}", "visibility": visibility, "visibility2D": True, "sliceIntersectionVisibility": True,
        "Visibility2DFill": False, "Visibility2DOutline": True, "Opacity3D": 0.5,
    }  # fmt: skip
    return [
        _node("SegmentationDisplay", identity, outline),
        _file("SegmentationStorage", number, item),
        _node("Segmentation", f"vtkMRMLSegmentationNode{number}", {"name": item.name, **refers}),
    ]


def _point(item: Item) -> list[str]:
    identity = "vtkMRMLMarkupsFiducialDisplayNode1"
    refers = _references({"display": identity, "storage": "vtkMRMLMarkupsJsonStorageNode1"}, tilted=False)
    cross = {
        "name": "cross", "glyphType": "CrossDot2D", "glyphScale": 2, "textScale": 2.5, "color": _PEAK_COLOUR,
        "selectedColor": _PEAK_COLOUR, "visibility2D": True, "sliceIntersectionVisibility": True,
    }  # fmt: skip
    return [
        _node("MarkupsFiducialDisplay", identity, cross),
        _file("MarkupsJsonStorage", 1, item),
        _node("MarkupsFiducial", "vtkMRMLMarkupsFiducialNode1", {"name": item.name, "locked": True, **refers}),
    ]


def _file(kind: str, number: int, item: Item) -> str:
    return _node(kind, f"vtkMRML{kind}Node{number}", {"name": f"{kind} {number}", "fileName": item.file})
