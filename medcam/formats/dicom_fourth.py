"""What tells the volumes of a 4D series apart: echo, b-value, phase, time, kind of image.

Vendors number the same things differently, and an element that differs between volumes may also differ from slice to
slice. An element splits a series if each of its values is found at most of the positions; else it says nothing.

References
----------
DICOM PS3.3 C.8.3 (MR), C.8.13 (enhanced MR), C.7.6.16.2.2 (frame content).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from medcam.formats.dicom_files import UNREADABLE, said
from medcam.formats.dicom_view import Header, View

# The share of a series' positions at which each value of an element must be found, for the element to split it.
_COVERED = 0.5
# Where vendors keep the b-value in elements of their own: group, creator, element.
_PRIVATE_B = (
    (0x0019, "SIEMENS MR HEADER", 0x0C),
    (0x2001, "Philips Imaging DD 001", 0x03),
    (0x0043, "GEMS_PARM_01", 0x39),
)
# GE adds this, or a multiple of it, to tell scans apart.
_GE_B_OFFSET = 100_000
KEYWORDS = (
    "ImageType",
    "ComplexImageComponent",
    "EchoNumbers",
    "EchoTime",
    "InversionTime",
    "FlipAngle",
    "KVP",
    "ConvolutionKernel",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
    "TriggerTime",
    "TemporalPositionIdentifier",
    "AcquisitionNumber",
    "AcquisitionTime",
    "ContentTime",
    "StackID",
)


class Place(NamedTuple):
    """A picture of a series: its number, its header, and the number of its position along the normal."""

    picture: int
    header: Header
    position: int


class Share(NamedTuple):
    """The pictures of one volume, and what tells it from the others: 'echo 1: TE 4.6 ms'."""

    pictures: tuple[int, ...]
    words: str


class _Axis(NamedTuple):
    value: Callable[[Header], Hashable]
    words: Callable[[Any], str]


def split(places: Sequence[Place]) -> tuple[Share, ...]:
    """Return the volumes among the pictures, each with one picture at a position; in the order of what tells them apart.

    Where nothing does, the volumes are told by the order of InstanceNumber at each position, if all positions have
    equally many.

    Raises
    ------
    ValueError
        If pictures share positions and nothing tells to which volume each belongs.
    """
    return tuple(Share(tuple(n for n in share.pictures), share.words) for share in _split(places, _AXES))


def _split(places: Sequence[Place], axes: Sequence[_Axis]) -> list[Share]:
    counts = Counter(each.position for each in places)
    if max(counts.values()) == 1:
        return [Share(tuple(each.picture for each in places), "")]
    for n, axis in enumerate(axes):
        groups = defaultdict(list)
        for each in places:
            groups[axis.value(each.header)].append(each)
        if len(groups) > 1 and all(
            len({each.position for each in group}) > _COVERED * len(counts) for group in groups.values()
        ):
            return [
                Share(share.pictures, ", ".join(filter(None, (axis.words((number, value)), share.words))))
                for number, value in enumerate(sorted(groups, key=_order), 1)
                for share in _split(groups[value], axes[n + 1 :])
            ]
    return _by_number(places, counts)


def _by_number(places: Sequence[Place], counts: Counter[int]) -> list[Share]:
    at_position = defaultdict(list)
    for each in places:
        frame = each.header.number if isinstance(each.header, View) else None
        at_position[each.position].append((_number(said(each.header, "InstanceNumber")), frame or 0, each.picture))
    told = all(len({(number, frame) for number, frame, _ in found}) == len(found) for found in at_position.values())
    many = max(counts.values())
    if (
        not told
        or min(counts.values()) != many
        or any(number is None for f in at_position.values() for number, *_ in f)
    ):
        raise ValueError("nothing tells the volumes apart")
    ordered = [sorted(found) for found in at_position.values()]
    return [
        Share(tuple(found[n][2] for found in ordered), f"image {n + 1} of {many} at each position, by InstanceNumber")
        for n in range(many)
    ]


def _order(value: Hashable) -> tuple[int, Any]:
    """Sort what is absent first, then numbers as numbers, then words."""
    if value is None or isinstance(value, float | tuple):
        numbers = value if isinstance(value, tuple) else (value,)
        return 0, tuple((each is not None, each or 0) for each in numbers)
    return 1, str(value)


def _number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


def _element(keyword: str) -> Callable[[Header], Hashable]:
    """Return what reads an element as a number, or else as the words that stand there."""

    def value(header: Header) -> Hashable:
        found = said(header, keyword)
        if found is None:
            return None
        number = _number(found)
        return str(found) if number is None else number

    return value


def _kind(header: Header) -> Hashable:
    found = said(header, "ImageType") or ()
    kind = (found,) if isinstance(found, str) else tuple(str(each) for each in found)
    # The first two say original or derived, primary or secondary; the third that it is no localizer.
    return "/".join(kind[:1] + kind[2:]) if len(kind) > 2 else "/".join(kind)


def _echo(header: Header) -> Hashable:
    return _number(said(header, "EchoNumbers")), _number(said(header, "EchoTime"))


def _b_value(header: Header) -> Hashable:
    public = _number(said(header, "DiffusionBValue"))
    if public is not None:
        return public
    dataset = header.header if isinstance(header, View) else header
    for group, creator, element in _PRIVATE_B:
        try:
            found = dataset.private_block(group, creator)[element].value
        except UNREADABLE:
            continue
        first = _number(found if isinstance(found, str | int | float) else next(iter(found), None))
        if first is not None:
            return first % _GE_B_OFFSET
    return None


def _gradient(header: Header) -> Hashable:
    found = said(header, "DiffusionGradientOrientation")
    if found is None and isinstance(header, View):
        for group in header.groups:
            for diffusion in group.get("MRDiffusionSequence") or ():
                for direction in diffusion.get("DiffusionGradientDirectionSequence") or ():
                    found = direction.get("DiffusionGradientOrientation")
    try:
        return None if found is None else tuple(round(float(each), 5) for each in found)
    except UNREADABLE:
        return None


def _worded(words: str, unit: str = "") -> Callable[[tuple[int, Any]], str]:
    def said_of(numbered: tuple[int, Any]) -> str:
        value = numbered[1]
        if value is None:
            return f"no {words}"
        shown = f"{value:g}" if isinstance(value, float) else _printable(value)
        return f"{words} {shown}{unit}"

    return said_of


def _printable(value: object) -> str:
    """Return words that may be shown: a damaged length drags in what follows, the patient's name too."""
    words = str(value)
    return words if len(words) <= 64 and words.isprintable() else "?"


def _echo_words(numbered: tuple[int, Any]) -> str:
    number, time = numbered[1]
    echo = f"echo {number:g}" if number is not None else ""
    return ": ".join(filter(None, (echo, "" if time is None else f"TE {time:g} ms"))) or "no echo time"


def _counted(words: str) -> Callable[[tuple[int, Any]], str]:
    return lambda numbered: f"{words} {numbered[0]}"


def _gradient_words(numbered: tuple[int, Any]) -> str:
    if numbered[1] is None:
        return "no gradient direction"
    return f"gradient direction ({', '.join(f'{each:.3f}' for each in numbered[1])})"


# In the order in which they are tried; times of day are told by their order alone.
_AXES = (
    _Axis(_kind, _worded("image type")),
    _Axis(_element("ComplexImageComponent"), _worded("component")),
    _Axis(_echo, _echo_words),
    _Axis(_element("InversionTime"), _worded("TI", " ms")),
    _Axis(_element("FlipAngle"), _worded("flip angle", " degrees")),
    _Axis(_element("KVP"), _worded("tube voltage", " kV")),
    _Axis(_element("ConvolutionKernel"), _worded("kernel")),
    _Axis(_b_value, _worded("b", " s/mm2")),
    _Axis(_gradient, _gradient_words),
    _Axis(_element("TriggerTime"), _worded("trigger time", " ms")),
    _Axis(_element("TemporalPositionIdentifier"), _worded("time")),
    _Axis(_element("AcquisitionNumber"), _worded("acquisition")),
    _Axis(_element("AcquisitionTime"), _counted("acquisition time")),
    _Axis(_element("ContentTime"), _counted("content time")),
)
