"""nnU-Net v2 model folders, loaded and prepared for by nnU-Net's own code.

    Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres/
        plans.json  dataset.json  fold_0/checkpoint_final.pth ... fold_4/

The network is what nnUNetPredictor builds; of several folds the mean, as it predicts. Preprocessing (axes transposed, empty margins
cropped, intensities normalised, voxels resampled) is the plans' own preprocessor; medcam follows where each voxel went, so that a heatmap
finds back. Windows are nnU-Net's.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.spatial.array import Orientation
from torch import Tensor, nn

from medcam.errors import ModelError, UsageError
from medcam.models.checkpoints import TRUST_MEANS
from medcam.models.slicewise import slicewise
from medcam.models.user_code import first_line, nearest

_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
# Of a film's axis across the image nnU-Net only asks that it is never the finest.
_ACROSS = 999.0


@dataclass(frozen=True, eq=False)
class NnunetFolder:
    """What a model folder says, in the words of `medcam.models.Model`."""

    network: nn.Module
    name: str
    sha256: str
    class_names: tuple[str, ...]
    preprocessing: Callable[[MetaTensor], MetaTensor]
    input_channels: int
    spatial_shape: tuple[int, ...]
    windows: Mapping[str, Any]
    activation: str | None
    members: tuple[str, ...]
    notes: tuple[str, ...]


class MeanOfFolds(nn.Module):
    """Networks that differ in their weights, and the mean of what they say; each stands under the name of its fold."""

    def __init__(self, folds: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, network in folds.items():
            self.add_module(name, network)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the folds' logits."""
        return torch.stack([network(x) for network in self.children()]).mean(0)


def is_nnunet(path: Path) -> bool:
    """Tell whether a folder is an nnU-Net model folder, or one fold of one."""
    return any((home / "plans.json").is_file() and (home / "dataset.json").is_file() for home in (path, path.parent))


def load_nnunet(path: Path, *, trust_code: bool, say: Callable[[str], None]) -> NnunetFolder:
    """Return the network of one fold or of all, and what nnU-Net does with an image before and while it predicts.

    Parameters
    ----------
    path
        The model folder, for the mean of its numbered folds, with which nnU-Net predicts; or one of its folders fold_0, fold_1, fold_all.

    Raises
    ------
    ModelError
        If a file is missing or damaged, the folder needs another network's prediction (a cascade), or `trust_code` is False.
    UsageError
        If nnunetv2 is not installed.
    """
    path = path.resolve()
    home, checkpoints = _folds(path)
    plans, dataset = _json(home / "plans.json"), _json(home / "dataset.json")
    _ask_for_trust(checkpoints, plans, trust_code, say)
    with _quietly():
        predictor = _predictor(home, checkpoints)
        settings, labels = predictor.configuration_manager, predictor.label_manager
        if settings.previous_stage_name is not None:
            raise ModelError(
                f"{home.name} is the second stage of a cascade: it looks at the prediction of {settings.previous_stage_name}, too. "
                "Explain that stage, or a 3d_fullres network"
            )
        sides = [int(side) for side in settings.patch_size]
        channels = _input_channels(predictor, dataset)
        names = tuple(checkpoint.parent.name for checkpoint in checkpoints)
        network = _network(predictor, names)
        # A 2D network trained on volumes goes through them slice by slice; one trained on films sees films.
        through = len(sides) == 2 and predictor.plans_manager.original_median_shape_after_transp[0] > 1
        if through:
            network, sides = slicewise(network), [1, *sides]
    return NnunetFolder(
        network=network.eval(),
        name=" ".join((home.name, *names)),
        sha256=_digest(home, [home / "plans.json", home / "dataset.json", *checkpoints]),
        class_names=_class_names(dataset, labels),
        preprocessing=NnunetPreprocessing(predictor.plans_manager, settings, dataset),
        input_channels=channels,
        spatial_shape=tuple(sides),
        windows=_windows(sides, through),
        activation="sigmoid" if labels.has_regions else None,
        members=names if len(names) > 1 else (),
        notes=tuple(_notes(home, names, predictor.allowed_mirroring_axes)),
    )


class NnunetPreprocessing:
    """The plans' own preprocessor as an array transform: a channel-first image in, what the network sees out, with its true affine.

    nnU-Net counts axes from the slices on (k j i), transposes them as its plans say, crops what is zero around the image, and resamples so
    that the image keeps its edges: the centre of voxel n lies at `(n + 0.5) * before / after - 0.5` of the voxels before.
    """

    def __init__(self, plans: Any, settings: Any, dataset: Mapping[str, Any]) -> None:
        self._plans, self._settings, self._dataset = plans, settings, dataset

    def __call__(self, img: MetaTensor) -> MetaTensor:
        """Return the image as the network sees it.

        Raises
        ------
        UsageError
            If the image is empty.
        """
        if self._plans.plans["image_reader_writer"] == "NibabelIOWithReorient":
            img = Orientation("RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(img)
        flat = img.ndim == 3
        affine = np.asarray(img.affine, np.float64)
        spacing = np.linalg.norm(affine[:-1, :-1], axis=0)[: img.ndim - 1]
        array = np.asarray(img.as_tensor().numpy(), np.float32)
        if not np.any(array):
            raise UsageError("the image is zero everywhere, so nnU-Net's preprocessing would crop all of it away")
        if flat:
            array, spacing = array[..., None], np.array([*spacing, spacing.max() * _ACROSS])
        properties: dict[str, Any] = {"spacing": [float(mm) for mm in spacing[::-1]]}
        with _quietly():
            preprocessor = self._settings.preprocessor_class(verbose=False)
            data, _, properties = preprocessor.run_case_npy(
                array.transpose(0, 3, 2, 1), None, properties, self._plans, self._settings, self._dataset
            )
        seen = torch.from_numpy(np.ascontiguousarray(data, np.float32))
        source_from_seen = self._source_from_seen(properties, seen.shape[1:])
        if flat:
            # The slice axis comes first; what is left are rows and columns.
            seen, source_from_seen = seen[:, 0], source_from_seen[np.ix_([0, 1, 3], [1, 2, 3])]
            rank = affine.shape[0] - 1
            affine = affine[np.ix_([0, 1, rank], [0, 1, rank])]
        return MetaTensor(seen, affine=torch.from_numpy(affine @ source_from_seen), meta=dict(img.meta))

    def _source_from_seen(self, properties: Mapping[str, Any], shape: Sequence[int]) -> np.ndarray:
        """Return the matrix from an index of what the network sees to the index i j k of the image."""
        matrix = np.eye(4)
        matrix[:3, :3] = 0
        cropped = properties["shape_after_cropping_and_before_resampling"]
        for axis, (first, _) in enumerate(properties["bbox_used_for_cropping"]):
            stride = cropped[axis] / shape[axis]
            # Axes of the array that was handed over are k j i.
            source = 2 - self._plans.transpose_forward[axis]
            matrix[source, axis], matrix[source, 3] = stride, first + (stride - 1) / 2
        return matrix


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what nnU-Net prints, and what it is warned of, away from the user, who may be reading JSON."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _folds(path: Path) -> tuple[Path, list[Path]]:
    """Return the model folder and the checkpoints of the folds that are meant."""
    home = path if (path / "plans.json").is_file() else path.parent
    trained = {p.name: found for p in sorted(home.glob("fold_*")) if (found := _checkpoint_in(p))}
    if not trained:
        raise ModelError(f"{home.name} holds no trained fold: expected fold_0/{_CHECKPOINTS[0]}")
    if path == home:
        # As nnU-Net does, which trains fold_all on every case.
        return home, [found for name, found in trained.items() if name != "fold_all"] or list(trained.values())
    if path.name not in trained:
        raise ModelError(
            f"{path.name} is no trained fold of {home.name}, which has {', '.join(trained)}{nearest(path.name, list(trained))}"
        )
    return home, [trained[path.name]]


def _checkpoint_in(fold: Path) -> Path | None:
    return next((fold / name for name in _CHECKPOINTS if (fold / name).is_file()), None)


def _json(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} cannot be read: {first_line(error)}") from error
    if not isinstance(held, dict):
        raise ModelError(f"{path.name} is damaged: it holds a {type(held).__name__}, where nnU-Net writes an object")
    return held


def _ask_for_trust(
    checkpoints: Sequence[Path], plans: Mapping[str, Any], trust_code: bool, say: Callable[[str], None]
) -> None:
    configurations = plans.get("configurations")
    held = list(configurations.values()) if isinstance(configurations, dict) else []
    architectures = [one.get("architecture") for one in held if isinstance(one, dict)]
    named = sorted({str(one.get("network_class_name")) for one in architectures if isinstance(one, dict)})
    opened = ", ".join(f"{checkpoint.parent.name}/{checkpoint.name}" for checkpoint in checkpoints)
    code = [
        f"nnU-Net opens {opened} as pickles",
        f"plans.json names what is built: {', '.join(named) or 'an architecture'}",
    ]
    if not trust_code:
        raise ModelError(f"an nnU-Net folder runs code: {'; '.join(code)}. {TRUST_MEANS}")
    for item in code:
        say(item)


def _predictor(home: Path, checkpoints: Sequence[Path]) -> Any:
    try:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    except ImportError as error:
        raise UsageError(
            f"nnU-Net folders need nnunetv2 ({first_line(error)}): pip install 'medcam-xai[nnunet]'"
        ) from error
    if len({checkpoint.name for checkpoint in checkpoints}) > 1:
        raise ModelError(f"some folds of {home.name} are trained to the end and others are not; name one of them")
    folds = [checkpoint.parent.name.removeprefix("fold_") for checkpoint in checkpoints]
    try:
        predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(home), tuple(folds), checkpoints[0].name)
    except Exception as error:  # whatever a damaged folder makes nnU-Net raise, the user learns what it was
        raise ModelError(f"nnU-Net cannot load {home.name}: {type(error).__name__}: {first_line(error)}") from error
    return predictor


def _network(predictor: Any, names: Sequence[str]) -> nn.Module:
    network: nn.Module = predictor.network
    if len(names) == 1:
        return network
    folds = {}
    for name, weights in zip(names, predictor.list_of_parameters, strict=True):
        folds[name] = copy.deepcopy(network)
        folds[name].load_state_dict(weights)
    return MeanOfFolds(folds)


def _windows(sides: Sequence[int], through: bool) -> dict[str, Any]:
    """Return what nnUNetPredictor does by default: half a window's step within slices, a Gaussian of an eighth of its side."""
    overlap = [0.0, 0.5, 0.5] if through else [0.5] * len(sides)
    return {"roi_size": sides, "overlap": overlap, "mode": "gaussian", "sigma_scale": 0.125, "rule": "nnunet"}


def _input_channels(predictor: Any, dataset: Mapping[str, Any]) -> int:
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    return int(determine_num_input_channels(predictor.plans_manager, predictor.configuration_manager, dataset))


def _class_names(dataset: Mapping[str, Any], labels: Any) -> tuple[str, ...]:
    """Return the names of the network's outputs: of labels in the order of their numbers, of regions in the order of dataset.json."""
    named = {name: value for name, value in dataset["labels"].items() if name != "ignore"}
    if labels.has_regions:
        return tuple(name for name, value in named.items() if value not in (0, [0]))
    return tuple(sorted(named, key=lambda name: int(np.atleast_1d(named[name])[0])))


def _notes(home: Path, names: Sequence[str], mirrored: Sequence[int] | None) -> Iterator[str]:
    others = sorted(p.name for p in home.glob("fold_*") if p.name not in (*names, "fold_all") and _checkpoint_in(p))
    if others and names != ("fold_all",):
        yield f"The mean of its folds is what nnU-Net predicts with; this explains {names[0]} alone, without {', '.join(others)}"
    if mirrored:
        yield "Mirrored windows, over which nnU-Net averages its prediction, too, were not looked at"


def _digest(home: Path, files: Sequence[Path]) -> str:
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.relative_to(home).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()
