"""`medcam inspect`: the layers of a model, or what an image holds."""

from __future__ import annotations

import zipfile
from argparse import Namespace
from math import isfinite
from pathlib import Path
from typing import Any

from medcam.commands import Result, Say
from medcam.commands.images import read_image
from medcam.commands.parsing import Commands, command
from medcam.errors import UsageError

_EXAMPLES = """\
  medcam inspect demo-mri                 the layers of a model, and which one is explained by default
  medcam inspect weights.pt --factory net.py:make --input-shape 1,96,96,96
  medcam inspect study_folder             the series in a folder, or the grid of an image
"""


def add(commands: Commands) -> None:
    """Add the parser."""
    inspect = command(
        commands, "inspect", "the layers of a model, or what an image holds", examples=_EXAMPLES, takes="model image"
    )
    inspect.add_argument("path", metavar="PATH", help="a model, or an image, folder or zip")
    inspect.add_argument(
        "--input-shape", metavar="C,I,J[,K]", help="the shape of one input of the model, channels first"
    )


def run(options: Namespace, say: Say) -> Result:
    """List the layers of a model, or what an image holds."""
    path = Path(options.path)
    return _inspect_model(options, say) if _is_model(path, options) else _inspect_image(options, path)


def _is_model(path: Path, options: Namespace) -> bool:
    if options.factory or options.input_shape or str(path).startswith(("demo-", "nnunet:")):
        return True
    if path.is_dir():
        nnunet = any((home / "plans.json").is_file() for home in (path, path.parent))
        return nnunet or (path / "configs").is_dir() or (path / "metadata.json").is_file()
    if path.suffix.lower() == ".zip" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any("configs/" in name for name in archive.namelist())
    return path.suffix.lower() in {".pt", ".pth", ".pt2", ".ts", ".ckpt", ".safetensors", ".torchscript"}


def _inspect_model(options: Namespace, say: Say) -> Result:
    import torch

    from medcam.engine.layers import WHY_DEFAULT, feature_layers
    from medcam.engine.ranking import layers as evidence_of
    from medcam.models import load_model

    model = load_model(
        options.path, factory=options.factory, trust_code=options.trust_code, device=options.device, say=options.tell
    )
    about = [f"model   {model.name} ({model.kind})", f"classes {', '.join(model.class_names) or 'not named'}"]
    about += [f"note    {note}" for note in model.notes]
    values: dict[str, Any] = {
        "model": model.name,
        "kind": model.kind,
        "classes": list(model.class_names),
        "notes": list(model.notes),
    }
    if not model.layers_open:
        return Result({**values, "layers": []}, [*about, "layers  none can be reached in a TorchScript file"])
    shape = _input_shape(options.input_shape, model.input_channels, model.spatial_dims, model.spatial_shape)
    inputs = torch.rand((1, *shape), generator=torch.Generator().manual_seed(0)).to(options.device)
    say(f"running it on random values of shape {'x'.join(map(str, shape))}")
    layers = feature_layers(model.network, inputs)
    say("measuring what its score owes to each layer")
    evidence = {each.layer.name: each for each in evidence_of(model.network, inputs)}
    rows = []
    values["input_shape"] = list(shape)
    values["layers"] = []
    for layer in layers:
        place, found = layer.footprint, evidence.get(layer.name)
        values["layers"].append(
            {"name": layer.name, "kind": layer.kind, "channels": layer.channels, "cells": list(layer.shape),
             "cell_size_voxels": list(place.stride), "first_cell_at": list(place.offset), "measured": place.measured,
             "before_head": layer.before_head, "default": layer.default,
             "owed_to_places": found.owed if found and isfinite(found.owed) else None,
             "means_cancel": bool(found and found.means_cancel)}
        )  # fmt: skip
        mark = "*" if layer.default else "c" if found and found.means_cancel else " " if layer.before_head else "h"
        owed = f"{found.owed:.2f}" if found and isfinite(found.owed) else "-"
        cells, size = "x".join(map(str, layer.shape)), "x".join(f"{s:g}" for s in place.stride)
        rows.append((mark, layer.name, layer.kind, str(layer.channels), cells, size, owed))
    heads = ("", "layer", "kind", "channels", "cells", "cell size in voxels", "owed")
    widths = [max(len(row[n]) for row in [heads, *rows]) for n in range(len(heads))]
    table = [
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in [heads, *rows]
    ]
    legend = [
        f"* default: {WHY_DEFAULT}",
        "c gradients cancel here, in front of a normalisation: methods that average them, such as grad-cam, say nothing",
        "h belongs to the head (holds class scores, or follows the last weights): never the default",
        "owed: which share of the score, on these random values, is owed to where features are (to first order; - none)",
    ]
    return Result(values, [*about, f"input   {'x'.join(map(str, shape))} (channels first)", *table, *legend])


def _input_shape(
    given: str | None, channels: int | None, dims: int | None, spatial: tuple[int, ...] | None
) -> tuple[int, ...]:
    if given:
        try:
            shape = tuple(int(n) for n in given.replace("x", ",").split(","))
        except ValueError:
            shape = ()
        if len(shape) not in (3, 4) or min(shape) < 1:
            raise UsageError(f"--input-shape takes channels and 2 or 3 sides, such as 1,96,96,96, not '{given}'")
        return shape
    dims = dims or (len(spatial) if spatial else None)
    if dims is None:
        raise UsageError("the model does not say what it takes; give --input-shape, such as 1,96,96,96")
    return (channels or 1, *(spatial or ((96, 96, 96) if dims == 3 else (256, 256))))


def _inspect_image(options: Namespace, path: Path) -> Result:
    from medcam.formats import kind_of

    if kind_of(path) == "dicom":
        from medcam.formats.dicom import find_series

        found = find_series(path, series=options.series)
        if len(found) == 1 and found[0].offered > 1 and options.volume is None:
            lines = [f"volume {n:>4}  {words}" for n, words in enumerate(found[0].volumes)]
            return Result({"volumes": list(found[0].volumes)}, [*lines, "choose one with --volume"])
        if len(found) > 1:
            listed = [
                {
                    "number": s.number,
                    "modality": s.modality,
                    "description": s.description,
                    "uid": s.uid,
                    "shape": list(s.shape),
                    "volumes": list(s.volumes),
                }
                for s in found
            ]
            lines = [
                f"series {s.number if s.number is not None else '-':>5}  {s.modality:<3} {'x'.join(map(str, s.shape)):<14} "
                f"{s.description}  ...{s.uid[-8:]}"
                for s in found
            ]
            return Result({"series": listed}, [*lines, "choose one with --series"])
    volume = read_image(options, path)
    grid, source = volume.grid, volume.source
    spacing = " x ".join(f"{mm:.3f}" for mm in grid.spacing_mm)
    axes = "".join(grid.axis_codes) if source.oriented else "not known"
    low, high = float(volume.voxels.min()), float(volume.voxels.max())
    values = {
        "format": source.format, "modality": source.modality, "shape": list(grid.shape), "spacing": list(grid.spacing_mm),
        "length_unit": source.length_unit, "axes": axes, "affine": grid.affine.tolist(), "range": [low, high],
        "unit": volume.unit, "frame_of_reference": grid.frame_of_reference, "sha256": source.sha256, "notes": list(source.notes),
    }  # fmt: skip
    lines = [
        f"image   {source.format}{f' {source.modality}' if source.modality else ''}, {' x '.join(map(str, grid.shape))} voxels of "
        f"{spacing} {source.length_unit}",
        f"axes    {axes} (i, j, k grow towards)",
        f"values  {low:g} to {high:g} {volume.unit}",
        *(f"note    {note}" for note in source.notes),
    ]
    return Result(values, lines)
