"""What notebooks show of a heatmap or an image: a small picture with words, without scripts; and on demand the page with the viewer."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medcam.errors import UsageError
from medcam.render import Picture, display_range, montage, overlay_rgb, planes_of, to_display
from medcam.report.montages import comparison
from medcam.report.page import Case, case_page, names_of
from medcam.volume import Heatmap, Volume

# A notebook with a hundred results should still open.
_MOST_BYTES = 200_000
_DPI = 84
# A map without its image is shown down to this share of its maximum: there is no anatomy that it could hide.
_FAINTEST = 0.05
_INK, _FAINT, _BACKGROUND, _UNSEEN = "#f2f2f2", "#a9afba", "#15171c", 0.28
# In inches.
_CELL, _PAD, _GAP, _TOP, _BOTTOM, _BAR = 2.3, 0.2, 0.1, 0.12, 0.42, 0.9


@dataclass(frozen=True, eq=False)
class View:
    """A case as a notebook shows it: a figure with words; `interactive()` is the page with sliders and planes."""

    case: Case

    def _repr_html_(self) -> str | None:
        """Return what a notebook shows, or None, for which it shows text, where it cannot be drawn."""
        try:
            return view_html(self.case)
        except Exception:  # noqa: BLE001  a picture that cannot be drawn must not cost the user's cell
            return None

    def interactive(self, *, height: int = 900) -> Page:
        """Return the page of the case, to be shown in the notebook in a frame of so many pixels.

        It holds the image and the viewer, two to several megabytes, which the notebook then holds too; it needs scripts and WebGL 2.
        """
        return Page(case_page(self.case), height)


@dataclass(frozen=True)
class Page:
    """A page that a notebook shows in a frame."""

    html: str
    height: int = 900

    def __repr__(self) -> str:
        return f"Page of {len(self.html) / 1e6:.1f} MB"

    def _repr_html_(self) -> str:
        """Return a frame that holds the whole page, and lets its script reach nothing of the notebook."""
        return (
            f'<iframe title="viewer of a heatmap" sandbox="allow-scripts" style="width:100%;height:{self.height}px;border:0" '
            f'srcdoc="{escape(self.html, quote=True)}"></iframe>'
        )


def show(
    heatmaps: Heatmap | Sequence[Heatmap],
    volume: Volume,
    *,
    lesion: Volume | None = None,
    threshold: float = 0.3,
    title: str = "",
) -> View:
    """Return one or several heatmaps over their image, for a notebook to show.

    Parameters
    ----------
    volume
        The image that the heatmaps were made for.
    lesion
        A mask to outline wherever it is above 0.5.
    threshold
        The fraction of each heatmap's maximum below which no colour is shown.
    title
        It must name no patient; what was explained if empty.

    Raises
    ------
    UsageError
        If there is no heatmap, or one does not lie on the image's grid.
    """
    every = (heatmaps,) if isinstance(heatmaps, Heatmap) else tuple(heatmaps)
    if not every:
        raise UsageError("show takes at least one heatmap")
    for each in every:
        if not each.grid.is_close(volume.grid):
            raise UsageError(
                f"a heatmap lies on a grid of shape {each.grid.shape} and the image on another, of shape {volume.grid.shape}; give the "
                "image that it was made for"
            )
    return View(Case(volume, every, threshold, lesion, (), title))


def view_html(case: Case) -> str:
    """Return a case as HTML without scripts: its figure, and what must be known of each heatmap."""
    first = case.heatmaps[0]
    if len(case.heatmaps) == 1:
        figure = montage(
            first, case.volume, lesion=case.lesion, threshold=case.threshold, title=case.title or first.target
        )
    else:
        named = dict(zip(names_of(case.heatmaps), case.heatmaps, strict=True))
        figure = comparison(
            named, case.volume, lesion=case.lesion, threshold=case.threshold, title=case.title or first.target
        )
    words = "".join(_words(each) for each in case.heatmaps)
    return _block(_image(figure, f"heatmap of {first.target} over its image"), words)


def heatmap_html(heatmap: Heatmap) -> str:
    """Return a heatmap without its image as HTML without scripts: planes through its peak, colour bar, and what must be known of it."""
    stand_in = Volume(
        np.broadcast_to(np.float32(0), heatmap.grid.shape), heatmap.grid, "a.u.", heatmap.source
    )  # takes no memory
    peak = heatmap.peak()
    figure = _planes(stand_in, heatmap, peak.voxel if peak else None)
    hint = "<div>Over its image: <code>medcam.show(heatmap, image)</code></div>"
    return _block(
        _image(figure, f"{heatmap.recipe.method} of {heatmap.target} without its image"), _words(heatmap) + hint
    )


def volume_html(volume: Volume) -> str:
    """Return an image as HTML without scripts: its middle planes, and what is known of its grid."""
    figure = _planes(volume, None, None)
    grid, source = volume.grid, volume.source
    shape, spacing = " x ".join(map(str, grid.shape)), " x ".join(f"{mm:.3g}" for mm in grid.spacing_mm)
    facts = [
        f"{shape} voxels",
        f"{spacing} mm" if source.spaced else "size of a pixel not known",
        f"axes towards {', '.join(grid.axis_codes)}" if source.oriented else "orientation not known",
        f"in {volume.unit}",
    ]
    words = f"<div><b>{escape(source.label)}</b> {escape(source.modality or source.format)} · {escape(' · '.join(facts))}</div>"
    return _block(_image(figure, f"planes of {source.label}"), words + _notes(source.notes))


def _block(image: str, words: str) -> str:
    return (
        '<div style="max-width:1000px;font:13px/1.45 system-ui,sans-serif">'
        f'{image}{words}<div style="opacity:.75">Research use only, not for diagnosis.</div></div>'
    )


def _words(heatmap: Heatmap) -> str:
    recipe = heatmap.recipe
    score = f"{recipe.score} {heatmap.score:.4g}"
    if heatmap.probability is not None:
        score += f", probability {heatmap.probability:.3g}"
    named = [f"{word} {name}" for word, name in (("layer", recipe.layer), ("model", recipe.model)) if name]
    unseen = float(np.isnan(heatmap.relevance).mean())
    named += [f"{100 * unseen:.1f} % not looked at"] if unseen else []
    line = " · ".join([recipe.method, *named, score, heatmap.source.label])
    return (
        f"<div><b>{escape(heatmap.target)}</b> {escape(line)}</div>"
        f"<div>Peak: {escape(heatmap.peak_in_words())}</div>{_notes(heatmap.notes)}"
    )


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<details><summary>To know about this result ({len(notes)})</summary><ul>{items}</ul></details>"


def _image(figure: Figure, words: str) -> str:
    """Return a figure as an element that asks nobody for anything: PNG, or JPEG where noise makes PNG large."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=_DPI, format="png", metadata={"Software": None})
    data, kind = drawn.getvalue(), "png"
    quality = 90
    while len(data) > _MOST_BYTES and quality > 0:
        data, kind, quality = _jpeg(figure, quality), "jpeg", quality - 20
    text = base64.b64encode(data).decode("ascii")
    return f'<img alt="{escape(words)}" style="max-width:100%" src="data:image/{kind};base64,{text}">'


def _jpeg(figure: Figure, quality: int) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=_DPI, format="jpeg", pil_kwargs={"quality": quality, "optimize": True})
    return drawn.getvalue()


def _planes(volume: Volume, heatmap: Heatmap | None, centre: tuple[int, int, int] | None) -> Figure:
    """Draw the planes of an image or of a heatmap beside each other, on one scale of millimetres."""
    grid, source = volume.grid, volume.source
    i, j, k = centre or tuple(n // 2 for n in grid.shape)
    pictures = []
    for plane in planes_of(volume):
        axis = 2 if plane == "stored" else next(a for a, code in enumerate(grid.axis_codes) if code in _NORMALS[plane])
        index = (i, j, k)[axis]
        words = "as stored" if plane == "stored" or not source.oriented else f"{plane}, slice {'ijk'[axis]} = {index}"
        grey = to_display(volume.voxels, grid, plane, index)
        hot = None if heatmap is None else to_display(heatmap.relevance, grid, plane, index).pixels
        pictures.append((words, grey, _pixels(grey, hot, volume, heatmap)))
    sizes = [(p.pixels.shape[1] * p.spacing_mm[1], p.pixels.shape[0] * p.spacing_mm[0]) for _, p, _ in pictures]
    scale = _CELL / max(side for size in sizes for side in size)
    tallest = max(high for _, high in sizes) * scale
    bar = _BAR if heatmap is not None and heatmap.maximum > 0 else 0.0
    width = sum(wide * scale + 2 * _PAD for wide, _ in sizes) + _GAP * (len(sizes) - 1) + bar
    height = _TOP + 2 * _PAD + tallest + _BOTTOM
    figure = Figure(figsize=(max(width, 3.2), height), facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    left = 0.0
    for (words, grey, pixels), (wide, high) in zip(pictures, sizes, strict=True):
        box = (left + _PAD, _TOP + _PAD + (tallest - high * scale) / 2, wide * scale, high * scale)
        _draw(figure, box, pixels)
        if source.oriented:
            _letters(figure, box, grey.letters)
        _say(figure, box[0], height - 0.2, words, size=8.0, colour=_FAINT)
        left += wide * scale + 2 * _PAD + _GAP
    if bar and heatmap is not None:
        _scale(figure, (left, _TOP + _PAD, 0.14, tallest), heatmap.maximum)
    return figure


_NORMALS = {"axial": "SI", "coronal": "AP", "sagittal": "RL"}


def _pixels(
    grey: Picture, hot: np.ndarray | None, volume: Volume, heatmap: Heatmap | None
) -> UInt8[np.ndarray, "r c 3"]:
    if hot is None or heatmap is None:
        return overlay_rgb(grey.pixels, np.zeros(grey.pixels.shape[:2], np.float32), window=display_range(volume))
    # What was not looked at is grey; what was looked at and speaks for nothing is black.
    ground = np.where(np.isnan(hot), np.float32(_UNSEEN), np.float32(0))
    return overlay_rgb(ground, hot, window=(0.0, 1.0), maximum=heatmap.maximum, threshold=_FAINTEST)


def _draw(figure: Figure, box: tuple[float, float, float, float], pixels: np.ndarray) -> None:
    left, top, width, height = box
    page = figure.get_size_inches()
    axes = figure.add_axes((left / page[0], 1 - (top + height) / page[1], width / page[0], height / page[1]))
    axes.set_axis_off()
    axes.imshow(pixels, aspect="auto", origin="upper", interpolation="antialiased")


def _letters(figure: Figure, box: tuple[float, float, float, float], letters: Sequence[str]) -> None:
    left, top, width, height = box
    middle, centre = left + width / 2, top + height / 2
    spots = ((left - 0.1, centre), (left + width + 0.1, centre), (middle, top - 0.12), (middle, top + height + 0.12))
    for (x, y), letter in zip(spots, letters, strict=True):
        _say(figure, x, y, letter, size=8.5, align="center")


def _scale(figure: Figure, box: tuple[float, float, float, float], maximum: float) -> None:
    share = np.tile(np.linspace(1, 0, 128, dtype=np.float32)[:, None], (1, 8))
    _draw(
        figure,
        box,
        overlay_rgb(np.zeros_like(share), share, window=(0.0, 1.0), maximum=1.0, threshold=_FAINTEST),
    )
    left, top, width, height = box
    for level in (0.0, 0.5, 1.0):
        _say(figure, left + width + 0.06, top + (1 - level) * height, f"{level * maximum:.2g}", size=7.5)
    _say(figure, left, top + height + 0.2, "relevance", size=7.5, colour=_FAINT)


def _say(
    figure: Figure, x: float, y: float, text: str, *, size: float, colour: str = _INK, align: str = "left"
) -> None:
    width, height = figure.get_size_inches()
    written = figure.text(x / width, 1 - y / height, text, fontsize=size, color=colour, ha=align, va="center")
    # A dollar sign in a name is not mathematics.
    written.set_parse_math(False)
