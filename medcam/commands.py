"""What each command does, as plain functions from parsed options to a result; nothing is printed here."""

from __future__ import annotations

import textwrap
import time
import zipfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from medcam.errors import UsageError
from medcam.volume import Heatmap, Volume

Say = Callable[[str], Any]
_TELL_EVERY_S = 5.0


@dataclass(frozen=True)
class Result:
    """What a command found: for machines, for people, and whether all is well."""

    values: dict[str, Any]
    lines: list[str]
    ok: bool = True


def explain(options: Namespace, say: Say) -> Result:
    """Explain one case, and write its heatmap."""
    from medcam.formats import check_formats, read, write

    if not options.model:
        raise UsageError("--model is missing: name a bundle, a .pt2, weights with --factory, demo-mri or demo-cxr")
    volumes: list[Volume] = []
    for image in options.images:
        say(f"reading image {len(volumes) + 1} of {len(options.images)}")
        volumes.append(read(image, series=options.series, volume=options.volume, allow_gaps=options.allow_gaps))
    if options.slice is not None:
        # The others are put on the grid of the first, so on its slice.
        volumes[0] = volumes[0].slice(options.slice)
    check_formats(options.formats, volumes[0], threshold=options.threshold)
    lesion = read(options.lesion) if options.lesion else None

    from medcam.models import load_model
    from medcam.pipeline import explain as explain_volumes
    from medcam.validate.localization import lesion_on

    say("loading the model")
    model = load_model(
        options.model, factory=options.factory, preprocessing=options.preprocessing, trust_code=options.trust_code,
        device=options.device, say=options.tell,
    )  # fmt: skip
    say(f"explaining with {options.method}")
    start = time.perf_counter()
    heatmap = explain_volumes(
        volumes,
        model,
        layer=options.layer if options.layer is None or "," not in options.layer else options.layer.split(","),
        target=options.target,
        method=options.method,
        score=options.score,
        activation=options.activation,
        output=options.output,
        fuse=options.fuse,
        flips=options.flips,
        window=_window(options.window),
        overlap=_overlap(options.overlap),
        exact=options.exact,
        seed=options.seed,
        device=options.device,
        progress=_progress(say),
    )
    if lesion is not None:
        lesion_on(heatmap, lesion)  # a mask that does not belong here is refused before anything is written
    say(f"explained in {time.perf_counter() - start:.1f} s; writing {options.formats}")
    files = write(heatmap, volumes[0], options.out, formats=options.formats, threshold=options.threshold, lesion=lesion)
    return _explained(heatmap, lesion, files, options.threshold)


def _window(text: str | None) -> tuple[int, ...] | int | None:
    """Return the sides of a window; () for 'whole'."""
    if text is None or text == "whole":
        return None if text is None else ()
    try:
        sides = tuple(int(part) for part in str(text).replace("x", ",").split(","))
    except ValueError:
        raise UsageError(f"--window takes numbers of voxels, such as 96,96,96, or 'whole', not '{text}'") from None
    return sides if len(sides) > 1 else sides[0]


def _overlap(text: str | None) -> tuple[float, ...] | float | None:
    if text is None:
        return None
    try:
        shares = tuple(float(part) for part in str(text).split(","))
    except ValueError:
        raise UsageError(f"--overlap takes a share such as 0.25, or one for each axis, not '{text}'") from None
    return shares if len(shares) > 1 else shares[0]


def _progress(say: Say) -> Callable[[int, int], None]:
    """Return what tells how far long work has come, every few seconds, and how long the rest may take."""
    start = told = time.perf_counter()

    def tell(done: int, count: int) -> None:
        nonlocal told
        now = time.perf_counter()
        if now - told >= _TELL_EVERY_S:
            told = now
            say(f"{done} of {count} done, about {(now - start) * (count - done) / done:.0f} s to go")

    return tell


def _explained(heatmap: Heatmap, lesion: Volume | None, files: tuple[Path, ...], threshold: float) -> Result:
    from medcam.formats.nifti import sidecar_values

    values = sidecar_values(heatmap, threshold) | {"files": [str(f) for f in files]}
    sure = "" if heatmap.probability is None else f", probability {heatmap.probability:.3f}"
    lines = [f"target  {heatmap.target}: {heatmap.recipe.score} {heatmap.score:.3f}{sure}"]
    lines.append(f"method  {heatmap.recipe.method}{f', layer {heatmap.recipe.layer}' if heatmap.recipe.layer else ''}")
    lines.append(f"peak    {describe_peak(heatmap)}")
    if lesion is not None:
        from medcam.validate.localization import peak_in_lesion

        hit = peak_in_lesion(heatmap, lesion)
        values["peak_in_lesion"] = hit
        words = {
            True: "lies in the lesion",
            False: "does not lie in the lesion",
            None: "cannot be tested: no peak, or an empty mask",
        }
        lines.append(f"        {words[hit]}")
    lines += [f"note    {note}" for note in heatmap.notes]
    lines += [f"wrote   {f}" for f in files]
    return Result(values, lines)


def describe_peak(heatmap: Heatmap) -> str:
    """Say where the peak is, in millimetres where the source knows them, towards patient directions where it knows those."""
    peak = heatmap.peak()
    if peak is None:
        return "none: nothing speaks for the target"
    voxel = f"voxel {', '.join(map(str, peak.voxel))}"
    if not heatmap.source.spaced:
        return f"{voxel} (the image does not say how large a pixel is)"
    if not heatmap.source.placed:
        i, j, k = (n * mm for n, mm in zip(peak.voxel, heatmap.grid.spacing_mm, strict=True))
        deep = f", {k:.1f} deep" if heatmap.grid.shape[2] > 1 else ""
        return f"{i:.1f} mm right and {j:.1f} mm down{deep} of the image's first voxel, {voxel}"
    x, y, z = peak.world_mm
    words = f"{abs(x):.1f} {'R' if x >= 0 else 'L'}, {abs(y):.1f} {'A' if y >= 0 else 'P'}, {abs(z):.1f} {'S' if z >= 0 else 'I'} mm"
    return f"{words} (RAS {x:.1f}, {y:.1f}, {z:.1f}), {voxel}"


def methods(options: Namespace, say: Say) -> Result:
    """List the methods, their options and what they say of themselves."""
    from medcam.engine.methods import EXPLAINERS
    from medcam.options import options_of

    values, rows = [], []
    for name, make in EXPLAINERS.items():
        about = " ".join((make.__doc__ or "").strip().split("\n\n")[0].split())
        chosen = options_of(make)
        values.append(
            {"name": name, "about": about, "options": {option: repr(value) for option, value in chosen.items()}}
        )
        given = f"({', '.join(f'{option}={value!r}' for option, value in chosen.items())})" if chosen else ""
        rows += [f"{name}{given}", *textwrap.wrap(about, 110, initial_indent="    ", subsequent_indent="    ")]
    usage = "an option is given with the method: --method 'rise(masks=2000)'"
    return Result({"methods": values}, [*rows, usage])


def inspect(options: Namespace, say: Say) -> Result:
    """List the layers of a model, or what an image holds."""
    path = Path(options.path)
    return _inspect_model(options, say) if _is_model(path, options) else _inspect_image(options, path)


def _is_model(path: Path, options: Namespace) -> bool:
    if options.factory or options.input_shape or str(path).startswith("demo-"):
        return True
    if path.is_dir():
        return (path / "configs").is_dir() or (path / "metadata.json").is_file()
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
    from medcam.formats import kind_of, read

    if kind_of(path) == "dicom":
        from medcam.formats.dicom import find_series

        found = find_series(path)
        if len(found) > 1 and options.series is None:
            listed = [
                {
                    "number": s.number,
                    "modality": s.modality,
                    "description": s.description,
                    "uid": s.uid,
                    "shape": list(s.shape),
                }
                for s in found
            ]
            lines = [
                f"series {s.number if s.number is not None else '-':>5}  {s.modality:<3} {'x'.join(map(str, s.shape)):<14} "
                f"{s.description}  ...{s.uid[-8:]}"
                for s in found
            ]
            return Result({"series": listed}, [*lines, "choose one with --series"])
    volume = read(path, series=options.series, volume=options.volume, allow_gaps=options.allow_gaps)
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


def demo(options: Namespace, say: Say) -> Result:
    """Explain the two sample images with the two demonstration models."""
    from medcam.formats import read, write
    from medcam.models import load_model
    from medcam.pipeline import explain as explain_volumes
    from medcam.samples import DEMOS, sample_path
    from medcam.validate.localization import peak_in_lesion

    lines, values = [], {}
    for case in DEMOS:
        say(f"{case.title}: reading")
        volume, lesion = read(sample_path(*case.image)), read(sample_path(*case.lesion))
        say(f"{case.title}: explaining")
        heatmap = explain_volumes(volume, load_model(case.model))
        folder = Path(options.out) / case.model
        say(f"{case.title}: writing")
        files = write(heatmap, volume, folder, formats=("nifti", "dicom-sc", "png"), lesion=lesion)
        hit = peak_in_lesion(heatmap, lesion)
        lines += [
            f"{case.title}",
            f"  target  {heatmap.target}: probability {heatmap.probability:.3f}, layer {heatmap.recipe.layer}, {heatmap.recipe.method}",
            f"  peak    {describe_peak(heatmap)}",
            f"          {'lies in the lesion' if hit else 'does NOT lie in the lesion'}",
            *(f"  wrote   {f}" for f in files if f.suffix != ".json"),
        ]
        values[case.model] = _explained(heatmap, lesion, files, 0.5).values
    ok = all(v["peak_in_lesion"] for v in values.values())
    image = sample_path(*DEMOS[0].image)
    lines += [
        "These models are a demonstration on synthetic lesions, never a detector. Research use only.",
        f"next: medcam inspect {DEMOS[0].model}",
        f"      medcam explain '{image}' --model {DEMOS[0].model} --layer features.1 --formats nifti,png --out my-first",
    ]
    return Result(values, lines, ok)


def doctor(options: Namespace, say: Say) -> Result:
    """Say what is installed, and whether anything stands in the way."""
    from medcam.doctor import examine

    findings = examine()
    lines = [f"{'ok  ' if f.ok else 'BAD '} {f.name:<14} {f.words}" for f in findings]
    values = {"checks": [{"name": f.name, "ok": f.ok, "words": f.words} for f in findings]}
    return Result(values, lines, all(f.ok for f in findings))
