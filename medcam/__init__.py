"""medcam: explain what a trained network saw in a medical image, and put it back in the right place.

Research use only. A heatmap shows what moved the network's score; it is neither a segmentation nor a diagnosis.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from medcam.engine import Relevance as Relevance
    from medcam.engine import relevance as relevance
    from medcam.engine import relevances as relevances
    from medcam.engine.ranking import layers as layers
    from medcam.errors import GeometryError as GeometryError
    from medcam.errors import InputError as InputError
    from medcam.errors import MedcamError as MedcamError
    from medcam.errors import ModelError as ModelError
    from medcam.errors import OutputError as OutputError
    from medcam.errors import UsageError as UsageError
    from medcam.formats import read as read
    from medcam.formats import read_mask as read_mask
    from medcam.formats import write as write
    from medcam.geometry import Grid as Grid
    from medcam.geometry import resample as resample
    from medcam.models import Model as Model
    from medcam.models import load_model as load_model
    from medcam.pipeline import explain as explain
    from medcam.recipe import Recipe as Recipe
    from medcam.render import montage as montage
    from medcam.report.notebook import show as show
    from medcam.samples import sample_path as sample_path
    from medcam.volume import Heatmap as Heatmap
    from medcam.volume import Source as Source
    from medcam.volume import Volume as Volume

# Where each public name lives. Loaded on first use, so that `import medcam` and `medcam --help` need neither torch nor MONAI.
_HOMES = {
    "GeometryError": "errors",
    "InputError": "errors",
    "MedcamError": "errors",
    "ModelError": "errors",
    "OutputError": "errors",
    "UsageError": "errors",
    "Relevance": "engine",
    "layers": "engine.ranking",
    "relevance": "engine",
    "relevances": "engine",
    "read": "formats",
    "read_mask": "formats",
    "write": "formats",
    "Grid": "geometry",
    "resample": "geometry",
    "Model": "models",
    "load_model": "models",
    "explain": "pipeline",
    "Recipe": "recipe",
    "montage": "render",
    "sample_path": "samples",
    "show": "report.notebook",
    "Heatmap": "volume",
    "Source": "volume",
    "Volume": "volume",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medcam' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"medcam.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
