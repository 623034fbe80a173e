"""Many methods on one film, from as few passes as they need, in one picture: python examples/compare_methods.py methods.png"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.figure
import numpy as np

import medcam
from medcam.prepare import prepare

METHODS = [
    "grad-cam", "grad-cam++", "xgrad-cam", "hires-cam", "layer-cam", "eigengrad-cam", "ablation-cam", "shapley-cam",
    "group-cam(groups=8)", "integrated-gradients(steps=8)", "guided-grad-cam", "occlusion(window=64, stride=32)",
]  # fmt: skip


def compare(out: Path) -> dict[str, float]:
    """Draw the maps over the film, and return for each method the share of its positive relevance that lies in the nodule."""
    film = medcam.read(medcam.sample_path("cxr", "film.nii.gz"))
    nodule = medcam.read(medcam.sample_path("cxr", "film_nodule.nii.gz")).voxels[:, :, 0] > 0
    model = medcam.load_model("demo-cxr")
    ready = prepare([film], model.preprocessing, spatial_dims=2)
    # The network's input lies on the film's own pixels or on others; the film is drawn as the network sees it.
    inside = (
        medcam.resample(nodule[:, :, None].astype(np.float32), film.grid, ready.grid, nearest=True, outside=0.0)[
            :, :, 0
        ]
        > 0
    )
    found = medcam.relevances(model.network, ready.tensor[None], methods=METHODS, targets=[0])
    figure = matplotlib.figure.Figure(figsize=(15, 13), layout="constrained")
    shares = {}
    for axes, answer in zip(figure.subplots(3, 4).flat, found, strict=True):
        positive = np.nan_to_num(answer.on_input()[0].numpy()).clip(min=0)
        shares[answer.method] = float(positive[inside].sum() / max(positive.sum(), 1e-12))
        axes.imshow(ready.tensor[0].numpy().T, cmap="gray")
        axes.imshow(np.ma.masked_less(positive, 0.3 * positive.max()).T, cmap="inferno", alpha=0.6)
        axes.contour(inside.T, [0.5], colors="cyan", linewidths=1)
        axes.set_title(f"{answer.method}\n{shares[answer.method]:.0%} of it in the nodule", fontsize=10)
        axes.set_axis_off()
    figure.suptitle(
        "One synthetic film and the demonstration network: a demonstration, never a detector. Cyan: the true nodule."
    )
    figure.savefig(out, dpi=80)
    return shares


if __name__ == "__main__":
    for method, share in compare(Path(sys.argv[1] if len(sys.argv) > 1 else "methods.png")).items():
        print(f"{method:32} {share:.0%}")
