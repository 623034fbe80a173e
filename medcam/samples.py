"""The data that medcam ships: small images with exact lesion masks, and two demonstration models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medcam.errors import InputError

_PACKAGE = Path(__file__).resolve().parent
# Inside the package once installed; beside it in a source checkout.
_HOMES = (_PACKAGE / "data_samples", _PACKAGE.parent / "data_samples")


def sample_path(*parts: str) -> Path:
    """Return where a shipped file or folder lies: `sample_path("models", "demo_mri")`.

    Raises
    ------
    InputError
        If this installation does not hold it.
    """
    for home in _HOMES:
        found = home.joinpath(*parts)
        if found.exists():
            return found
    raise InputError(
        f"this installation of medcam does not hold the sample {'/'.join(parts)}: reinstall medcam, or run it from a full source checkout"
    )


@dataclass(frozen=True)
class Demo:
    """One case of `medcam demo`: an image, its exact lesion mask, and the model that explains it, as parts of `sample_path`."""

    title: str
    model: str
    image: tuple[str, ...]
    lesion: tuple[str, ...]


DEMOS = (
    Demo("synthetic head MRI", "demo-mri", ("mri", "head_flair_dicom"), ("mri", "head_lesion.nii.gz")),
    Demo("synthetic chest film", "demo-cxr", ("cxr", "film.dcm"), ("cxr", "film_nodule.nii.gz")),
)
