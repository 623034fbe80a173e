"""The infer task: medcam explains the image, and the client gets bands of relevance as labels.

MONAI Label's clients take label maps, so relevance itself, a map of floats, does not reach them: it stays in a file whose name is in the
answer, and each voxel's label says how much of the map's maximum it reaches.

medcam runs in a Python of its own, since MONAI Label asks for older versions of pydicom and numpy than medcam does.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.data import MetaTensor
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.basic_infer import BasicInferTask

METHODS = ["grad-cam", "layer-cam", "hires-cam", "grad-cam++", "occlusion", "integrated-gradients"]
BANDS = (0.3, 0.5, 0.7, 0.9)


def bands(relevance: np.ndarray, fractions: Sequence[float] = BANDS) -> np.ndarray:
    """Return for each voxel how many of the fractions of the maximum it reaches: 0 below the first, and where nothing was looked at."""
    seen = np.nan_to_num(relevance, nan=-np.inf)
    if not seen.max() > 0:
        return np.zeros(relevance.shape, np.uint8)
    return sum((seen >= fraction * seen.max()).astype(np.uint8) for fraction in fractions)


class HeatmapInfer(BasicInferTask):
    """Explain a network's score of an image.

    Parameters
    ----------
    model
        What `medcam explain --model` takes: a bundle, a `.pt2` file, or a demonstration model.
    folder
        Where heatmaps are kept, with the recipes that make them again.
    python
        The Python that has medcam.
    fractions
        Of the maximum, in rising order: a label for each.
    """

    def __init__(
        self, model: str, folder: Path, *, python: str, fractions: Sequence[float] = BANDS, dimension: int = 3
    ) -> None:
        labels = {f"relevance from {fraction:.0%} of its maximum": n for n, fraction in enumerate(fractions, 1)}
        super().__init__(
            path=None, network=None, type=InferType.SEGMENTATION, labels=labels, dimension=dimension,
            description="Where the network looked: bands of relevance, no segmentation. Research use only.",
            config={"method": METHODS, "target": "", "layer": ""},
        )  # fmt: skip
        self.model, self.folder, self.python, self.fractions = model, folder, python, tuple(fractions)

    def is_valid(self) -> bool:
        """Tell MONAI Label that there is something to run, though it loads no network itself."""
        return True

    def pre_transforms(self, data: Any = None) -> list[Any]:
        """Return none: medcam reads the image and prepares it as the model's own transforms say."""
        return []

    def post_transforms(self, data: Any = None) -> list[Any]:
        """Return none: the labels lie on the image's own grid already."""
        return []

    def run_inferer(self, data: dict[str, Any], convert_to_batch: bool = True, device: str = "cpu") -> dict[str, Any]:
        """Explain the image that the request names, and return its bands and what must be known of them."""
        told = self._explained(data, device)
        (file,) = [path for path in told["files"] if path.endswith(".nii.gz") and not path.endswith("_label.nii.gz")]
        heatmap = nibabel.load(file)
        data[self.output_label_key] = MetaTensor(bands(heatmap.get_fdata(), self.fractions), affine=heatmap.affine)
        data["result_extension"], data["result_dtype"], data["result_compress"] = ".nii.gz", np.uint8, True
        data[self.output_json_key] = {
            "heatmap_file": file,
            **{name: told[name] for name in ("target", "score", "probability", "peak", "notes")},
            "method": told["recipe"]["method"],
            "use": "Research use only, not for diagnosis.",
        }
        return data

    def _explained(self, data: dict[str, Any], device: str) -> dict[str, Any]:
        command = [
            self.python,
            "-m",
            "medcam",
            "explain",
            data["image_path"],
            "--model",
            self.model,
            "--device",
            device,
        ]
        for option in ("method", "target", "layer"):
            # A choice that the client did not make comes as the list of all choices.
            value = data.get(option)
            value = value[0] if isinstance(value, list) else value
            command += [f"--{option}", str(value)] if value else []
        command += ["--formats", "nifti", "--out", str(self.folder), "--json", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            told = json.loads(done.stdout)
        except ValueError:
            told = {"ok": False, "error": f"{self.python} has no medcam that runs: {done.stderr[-300:]}"}
        if not told["ok"]:
            raise MONAILabelException(MONAILabelError.INFERENCE_ERROR, told["error"])
        return told
