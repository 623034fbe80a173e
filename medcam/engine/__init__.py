"""The engine: what in its input moved a network's score. Tensors and modules only; it knows no file and no millimetre.

`EXPLAINERS` is the table of methods. Each takes a network, its input, the name of a layer and a target, and gives a `Relevance` that still
lies on the layer's own cells.
"""

from __future__ import annotations

from medcam.engine.answer import Relevance
from medcam.engine.explainer import Explainer, rule
from medcam.engine.explaining import relevance, relevances
from medcam.engine.layers import Layer
from medcam.engine.methods import EXPLAINERS

__all__ = ["EXPLAINERS", "Explainer", "Layer", "Relevance", "relevance", "relevances", "rule"]
