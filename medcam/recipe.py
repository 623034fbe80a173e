"""Recipe: every choice of one run, enough to make the same heatmap again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast

from medcam.errors import InputError

VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """Every choice of one run. Frozen, without patient identity or machine paths, and JSON in and out.

    Parameters
    ----------
    model, model_sha256
        The name of the network and the digest of the bytes it was loaded from ('' for a module given in memory).
    method, layer, target, score
        What was computed: 'grad-cam' or a method with options, 'features' ('' for methods without a layer), 'lesion (class 0)', and
        'logit', 'probability' or 'own'.
    activation
        'softmax' or 'sigmoid' if the user named what makes probabilities of the output, else None.
    fusion
        How the maps of several layers became one, or ''.
    seed
        Of the method's random numbers.
    windows
        How the volume was cut, in the words of MONAI's SlidingWindowInferer, and whether the stitched score was explained ('exact'); empty
        if the network saw it at once.
    preprocessing
        The transforms that stood between the image and the network, one a line, each with its parameters: `Name(parameter=value, ...)`.
    inputs
        Digest of each source, in the order of the network's channels.
    input_shape, feature_shape, stride, offset
        What the network saw and where its feature cells lie in it: cell c is centred on input index `offset + stride * c`.
    device, dtype
        Where and in which precision it ran.
    versions
        Of medcam and of the libraries that the numbers depend on.
    """

    model: str
    model_sha256: str
    method: str
    layer: str
    target: str
    score: str = "logit"
    activation: str | None = None
    fusion: str = ""
    seed: int = 0
    windows: Mapping[str, Any] = field(default_factory=dict, hash=False)
    preprocessing: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    input_shape: tuple[int, ...] = ()
    feature_shape: tuple[int, ...] = ()
    stride: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    device: str = "cpu"
    dtype: str = "float32"
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values, with the version of its schema."""
        return {"recipe_version": VERSION, **json.loads(json.dumps(asdict(self)))}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Recipe:
        """Return the recipe that `to_json` wrote.

        Raises
        ------
        InputError
            If the values are of another schema version, a name is missing or unknown, or a value is of the wrong kind.
        """
        given = dict(values)
        version = given.pop("recipe_version", None)
        if version != VERSION:
            raise InputError(f"this recipe has version {version}; this medcam reads version {VERSION}")
        kinds = {f.name: str(f.type) for f in fields(Recipe)}
        if unknown := sorted(set(given) - set(kinds)):
            raise InputError(f"a recipe has no entry named {', '.join(unknown)}")
        for name, value in given.items():
            if not _is_of(kinds[name], value):
                raise InputError(
                    f"the recipe's entry '{name}' is damaged: {kinds[name]} was expected, not {value!r:.60}"
                )
        try:
            values = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
            return Recipe(**cast(Any, values))
        except TypeError as error:
            raise InputError(f"this recipe is not complete: {error}") from error


def _is_of(kind: str, value: object) -> bool:
    """Tell whether a value that came out of JSON is of the kind that a field's annotation names."""
    if kind.startswith("Mapping"):
        texts = "str]" in kind.partition(",")[2]
        return (
            isinstance(value, dict)
            and all(isinstance(key, str) for key in value)
            and (not texts or all(isinstance(each, str) for each in value.values()))
        )
    if kind.startswith("tuple["):
        return isinstance(value, list) and all(_is_of(kind[6:].partition(",")[0], each) for each in value)
    numbers = {"int": (int,), "float": (int, float)}
    if kind in numbers:
        return isinstance(value, numbers[kind]) and not isinstance(value, bool)
    return isinstance(value, str) or (value is None and kind.endswith("None"))
