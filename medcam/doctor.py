"""What is installed here, and whether it is the medcam it should be."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import medcam

_NEEDED = ("numpy", "scipy", "torch", "monai", "nibabel", "pydicom", "matplotlib", "pillow")
_OTHER = "medcam"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    words: str


def examine() -> list[Finding]:
    """Return what a report of a problem should hold; a finding that is not ok says what to do."""
    findings = [
        _identity(),
        Finding("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
    ]
    for name in _NEEDED:
        found = _version(name)
        findings.append(Finding(name, found is not None, found or f"missing: pip install {name}"))
    return [*findings, *_device(), _decoders(), _samples()]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _identity() -> Finding:
    """PyPI's `medcam` is another package, M3d-CAM, that installs into the same folder: whichever came last has overwritten the other."""
    here = Path(__file__).parent
    if (other := _version(_OTHER)) is not None:
        return Finding(
            "medcam", False,
            f"the package 'medcam' {other} (M3d-CAM) is installed too and shares the import name, so either may be broken: "
            "pip uninstall medcam medcam-xai, then install medcam-xai again",
        )  # fmt: skip
    loaded = getattr(medcam, "__file__", None)
    if loaded is None or Path(loaded).parent != here or not hasattr(medcam, "__version__"):
        return Finding(
            "medcam", False, f"`import medcam` gives something else: {loaded}; remove it, or install medcam-xai again"
        )
    return Finding("medcam", True, f"{medcam.__version__} (medcam-xai)")


def _device() -> list[Finding]:
    try:
        import torch
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return [Finding("device", True, f"CPU, {torch.get_num_threads()} threads; no CUDA device")]
    return [Finding("device", True, f"CUDA {torch.version.cuda}: {torch.cuda.get_device_name()}")]


def _decoders() -> Finding:
    try:
        from pydicom.pixels.decoders.base import get_decoder
        from pydicom.uid import UID
    except ImportError:
        return Finding("decoders", False, "pydicom is missing")
    missing = []
    for name, uid in (
        ("JPEG", "1.2.840.10008.1.2.4.50"), ("JPEG lossless", "1.2.840.10008.1.2.4.70"), ("JPEG-LS", "1.2.840.10008.1.2.4.80"),
        ("JPEG 2000", "1.2.840.10008.1.2.4.90"), ("RLE", "1.2.840.10008.1.2.5"),
    ):  # fmt: skip
        if not get_decoder(UID(uid)).is_available:
            missing.append(name)
    if missing:
        hint = "pip install pylibjpeg pylibjpeg-openjpeg pyjpegls python-gdcm"
        return Finding("decoders", False, f"no decoder for DICOM in {', '.join(missing)}: {hint}")
    return Finding("decoders", True, "JPEG, JPEG lossless, JPEG-LS, JPEG 2000, RLE")


def _samples() -> Finding:
    from medcam.errors import MedcamError
    from medcam.samples import sample_path

    try:
        return Finding("samples", sample_path("models").is_dir(), "demo images and models are here")
    except MedcamError as error:
        return Finding("samples", False, str(error))
