"""Which volumes a series holds: stacks of parallel pictures, each of one echo, time, b-value or kind; and single films.

A series may mix orientations and sizes, repeat itself in time, and carry localizers, reformatted or coloured pictures
along. Each volume is a choice of its own; localizers, and derived pictures that lie otherwise than the original ones,
are offered last and never chosen without being asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from medcam.errors import GeometryError, InputError, UsageError
from medcam.formats import dicom_fourth, dicom_pixels
from medcam.formats.dicom_files import said
from medcam.formats.dicom_film import view_of
from medcam.formats.dicom_pictures import Instance, Picture, pictures_of
from medcam.formats.dicom_plane import Plane, name, numbers, plane, same_orientation, same_spacing, size

# Slices are never this near to each other, and positions are rounded.
_SAME_PLACE_MM = 0.01
# The classes whose images must say where they lie: CT, MR, PET; plain, enhanced, and converted from plain to enhanced.
_PLACED = tuple(f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "2.1", "2.2", "4", "4.1", "4.4", "128", "128.1", "130"))
# What ImageType calls pictures that were computed from the slices beside them.
_REFORMATTED = frozenset(("MPR", "MIP", "MINIP", "PROJECTION IMAGE", "REFORMATTED", "CSA MPR", "CSA MIP", "CURVED"))
# PS3.3 C.7.6.3.1.2.
_COLOURS = (
    "RGB",
    "PALETTE COLOR",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_PARTIAL_420",
    "YBR_PARTIAL_422",
    "YBR_ICT",
    "YBR_RCT",
    "XYB",
)
_LISTED = 20


class Candidate(NamedTuple):
    """One volume of a series.

    Parameters
    ----------
    pictures
        In any order.
    planes
        Where they lie; empty for an X-ray film or another picture that does not say.
    words
        What tells it from the others: 'echo 1: TE 4.6 ms'.
    aside
        Why it is not read unless asked for, or ''.
    notes
        What its user should know.
    """

    pictures: tuple[Picture, ...]
    planes: tuple[Plane, ...]
    words: str
    aside: str = ""
    notes: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """What it is, in words: what tells it apart, number of slices, size."""
        columns, rows = size(self.pictures[0].header)
        count = len(self.pictures)
        sized = f"{count} slice{'s' if count > 1 else ''} of {columns} x {rows}"
        return ", ".join(filter(None, (self.words, sized, self.aside)))


class _Placed(NamedTuple):
    picture: Picture
    plane: Plane
    kind: tuple[str, ...]
    stack: str


def volumes_of(instances: Sequence[Instance], *, digest: Callable[[Picture], bytes]) -> tuple[Candidate, ...]:
    """Return the volumes of a series, those that are offered first before those that stand aside.

    Parameters
    ----------
    digest
        Tells pictures with other pixels apart; asked only where two lie at one place and nothing else does.

    Raises
    ------
    InputError
        If an image is of a kind that is not read, or damaged.
    GeometryError
        If an image that must say where it lies does not, or images share places and nothing tells them apart.
    """
    pictures, notes = _grey_pictures(instances)
    films = [each for each in pictures if not _is_placed(each)]
    placed = [_placed(each) for each in pictures if _is_placed(each)]
    stacks, aside = _main_and_aside(_stacks(placed))
    apart = [_view_words(each) for each in films]
    found = [
        *(each for stack in stacks for each in _volumes(stack, _stack_words(stack, [*stacks, *aside]), "", digest)),
        *(
            Candidate((film,), (), words, "" if not placed else "without a place in the patient")
            for film, words in zip(films, apart, strict=True)
        ),
        *(
            each
            for stack in aside
            for each in _volumes(stack, _stack_words(stack, [*stacks, *aside]), _why_aside(stack), digest)
        ),
    ]
    return tuple(each._replace(notes=(*notes, *each.notes)) for each in found)


def choose_volume(found: Sequence[Candidate], number: int | None) -> tuple[int, Candidate]:
    """Return the volume of this number, or the only one that does not stand aside, and its number.

    Raises
    ------
    GeometryError
        If there are several and none was chosen.
    UsageError
        If there is no volume of this number.
    """
    offered = [each for each in found if not each.aside]
    if number is None and len(offered) <= 1:
        chosen = found[0]
        left_out = sorted({each.aside for each in found if each is not chosen})
        notes = tuple(f"left out of the volume: {why}" for why in left_out)
        return 0, chosen._replace(notes=(*chosen.notes, *notes))
    if number is None:
        raise GeometryError(
            f"the series holds {len(offered)} volumes, and medcam reads one at a time; choose it with --volume:\n"
            f"{listing(found)}"
        )
    if not 0 <= number < len(found):
        raise UsageError(
            f"there is no volume {number}: the series holds {len(found)}, counted from 0:\n{listing(found)}"
        )
    chosen = found[number]
    if len(found) > 1:
        note = f"volume {number} of {len(found)} (from 0) in the series: {chosen.line}"
        chosen = chosen._replace(notes=(*chosen.notes, note))
    return number, chosen


def listing(found: Sequence[Candidate]) -> str:
    """Return one line a volume: its number and what it is."""
    lines = [f"  {n}: {each.line}" for n, each in enumerate(found)]
    if len(lines) > _LISTED:
        lines = [*lines[: _LISTED - 1], f"  ... and so on, up to {len(lines) - 1}"]
    return "\n".join(lines)


def _grey_pictures(instances: Sequence[Instance]) -> tuple[list[Picture], tuple[str, ...]]:
    grey = [each for each in instances if dicom_pixels.is_grey(each.header)]
    if not grey:
        first = instances[0]
        colours = said(first.header, "PhotometricInterpretation")
        # In a damaged header anything may stand there, a name too.
        named = colours if colours in _COLOURS else "of no known kind"
        raise InputError(
            f"{first.file.path.name} is a colour image (PhotometricInterpretation {named}); medcam reads greyscale images (MONOCHROME1 or "
            "MONOCHROME2): give the original images of the study"
        )
    coloured = len(instances) - len(grey)
    notes = (f"colour images of the series were left out: {coloured}",) if coloured else ()
    return [picture for each in grey for picture in pictures_of(each)], notes


def _is_placed(picture: Picture) -> bool:
    if said(picture.instance.header, "SOPClassUID") in _PLACED:
        return True
    return numbers(picture.header, "ImagePositionPatient", 3) is not None


def _placed(picture: Picture) -> _Placed:
    value = said(picture.header, "ImageType") or ()
    kind = (value,) if isinstance(value, str) else tuple(str(each) for each in value)
    return _Placed(picture, plane(picture.header), kind, str(said(picture.header, "StackID") or ""))


def _stacks(placed: Sequence[_Placed]) -> list[list[_Placed]]:
    """Sort pictures by what one volume must share: size, spacing, orientation, space, stack; and localizers, reformats."""
    stacks: list[tuple[tuple[object, ...], list[_Placed]]] = []
    # A stack is told by frames only, and an identifier for each picture tells nothing.
    ids = {each.stack for each in placed}
    several = "" not in ids and len(ids) < len(placed)
    for each in placed:
        key = (
            each.plane.size,
            each.plane.frame_of_reference,
            each.stack if several else "",
            "LOCALIZER" in each.kind,
            _is_reformatted(each.kind),
        )
        for known, stack in stacks:
            first = stack[0].plane
            if known == key and same_orientation(first, each.plane) and same_spacing(first, each.plane):
                stack.append(each)
                break
        else:
            stacks.append((key, [each]))
    return sorted((stack for _, stack in stacks), key=len, reverse=True)


def _is_reformatted(kind: Sequence[str]) -> bool:
    return "DERIVED" in kind[:1] and not _REFORMATTED.isdisjoint(kind)


def _main_and_aside(stacks: list[list[_Placed]]) -> tuple[list[list[_Placed]], list[list[_Placed]]]:
    """Part stacks from those that only go along with them: localizers, and what was derived from the others."""

    def is_original(stack: list[_Placed]) -> bool:
        return any("DERIVED" not in each.kind[:1] for each in stack)

    scans = [stack for stack in stacks if not _is_localizer(stack)] or stacks
    main = [stack for stack in scans if is_original(stack)] or [
        stack for stack in scans if not _is_reformatted(stack[0].kind)
    ]
    main = main or scans
    return main, [stack for stack in stacks if all(stack is not each for each in main)]


def _is_localizer(stack: list[_Placed]) -> bool:
    return "LOCALIZER" in stack[0].kind


def _why_aside(stack: list[_Placed]) -> str:
    return "localizer" if _is_localizer(stack) else "derived from other images of the series"


def _stack_words(stack: list[_Placed], stacks: Sequence[list[_Placed]]) -> str:
    """Return what tells a stack from the others."""
    mine, firsts = stack[0].plane, [each[0].plane for each in stacks]
    words = []
    if not all(same_orientation(mine, each) for each in firsts):
        words.append(mine.orientation)
    if not all(same_spacing(mine, each) for each in firsts):
        words.append(f"pixels of {mine.spacing[0]:g} x {mine.spacing[1]:g} mm")
    frames = list(dict.fromkeys(each.frame_of_reference for each in firsts))
    if len(frames) > 1:
        words.append(f"frame of reference {frames.index(mine.frame_of_reference) + 1} of {len(frames)}")
    stack_ids = list(dict.fromkeys(each[0].stack for each in stacks))
    if len(stack_ids) > 1:
        words.append(f"stack {stack_ids.index(stack[0].stack) + 1} of {len(stack_ids)}")
    return ", ".join(words)


def _volumes(stack: list[_Placed], words: str, aside: str, digest: Callable[[Picture], bytes]) -> list[Candidate]:
    """Split a stack into volumes with one picture at each position."""
    positions = _positions(stack)
    notes: tuple[str, ...] = ()
    places = [dicom_fourth.Place(n, each.picture.header, positions[n]) for n, each in enumerate(stack)]
    try:
        shares = dicom_fourth.split(places)
    except ValueError:
        kept = _without_repeats(places, stack, digest)
        notes = (f"pictures that repeat another one at the same place were left out: {len(places) - len(kept)}",)
        try:
            shares = dicom_fourth.split(kept)
        except ValueError:
            raise GeometryError(_shared(stack, positions)) from None
    return [
        Candidate(
            tuple(stack[n].picture for n in share.pictures),
            tuple(stack[n].plane for n in share.pictures),
            ", ".join(filter(None, (words, share.words))),
            aside,
            (*notes, *_lack(len(share.pictures), len(set(positions)))),
        )
        for share in shares
    ]


def _positions(stack: list[_Placed]) -> list[int]:
    along = np.array([each.plane.position for each in stack]) @ stack[0].plane.normal
    order = np.argsort(along, kind="stable")
    numbered = np.cumsum(np.diff(along[order], prepend=along[order[0]]) > _SAME_PLACE_MM)
    positions = np.empty(len(stack), int)
    positions[order] = numbered
    return [int(each) for each in positions]


def _lack(present: int, everywhere: int) -> tuple[str, ...]:
    if present == everywhere:
        return ()
    return (f"the series has images at {everywhere} positions, this volume at {present} of them",)


def _without_repeats(
    places: Sequence[dicom_fourth.Place], stack: list[_Placed], digest: Callable[[Picture], bytes]
) -> list[dicom_fourth.Place]:
    kept, seen = [], set()
    counts = Counter(each.position for each in places)
    for each in places:
        if counts[each.position] > 1:
            mark = (each.position, digest(stack[each.picture].picture))
            if mark in seen:
                continue
            seen.add(mark)
        kept.append(each)
    return kept


def _shared(stack: list[_Placed], positions: Sequence[int]) -> str:
    normal = stack[0].plane.normal
    places, counts = np.unique(positions, return_counts=True)
    listed = [
        f"{stack[positions.index(int(place))].plane.position @ normal:.3f} mm ({count} images)"
        for place, count in zip(places, counts, strict=True)
        if count > 1
    ]
    return (
        f"different images of this series share {len(listed)} of its {len(places)} positions along the slice normal, and "
        f"nothing tells to which volume each belongs: {', '.join(listed[:6])}{', ...' if len(listed) > 6 else ''}; give "
        "the images of one volume"
    )


def _view_words(film: Picture) -> str:
    """Return what a film shows and its number: 'view PA, the image with InstanceNumber 1'."""
    return ", ".join(filter(None, (view_of(film.header), name(film.header))))
