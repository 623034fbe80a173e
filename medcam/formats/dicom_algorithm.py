"""What made a derived object, in codes and in the recipe: the method, the network, every choice.

References
----------
DICOM PS3.3 10.16 (Algorithm Identification), C.7.6.16.2.11.1.2 (Quantity Definition); PS3.16 CID 217 (Visual Explanation).
"""

from __future__ import annotations

import json

from pydicom import Dataset

from medcam import __version__
from medcam.formats.dicom_code import code
from medcam.volume import Heatmap

VISUAL_EXPLANATION = ("130401", "DCM", "Visual explanation")
_ACTIVATION = ("130402", "DCM", "Class activation")
_GRADIENT_WEIGHTED = ("130403", "DCM", "Gradient-weighted class activation")
_SALIENCY = ("130404", "DCM", "Saliency")

# Which of DICOM's kinds of explanation a method is: a layer's activation weighted by gradients; by anything else; a share of
# the input by gradients. What tries out changed inputs is only the kind above these.
_KINDS = {
    _GRADIENT_WEIGHTED: (
        "grad-cam grad-cam++ smooth-grad-cam++ xgrad-cam hires-cam layer-cam eigengrad-cam finer-cam shapley-cam "
        "seg-grad-cam seg-hires-cam seg-xres-cam guided-grad-cam"
    ),
    _ACTIVATION: "cam eigen-cam ablation-cam score-cam group-cam cluster-cam cosine-cam",
    _SALIENCY: (
        "fullgrad saliency input-x-gradient smoothgrad guided-backpropagation deconvnet integrated-gradients"
    ),
    VISUAL_EXPLANATION: "occlusion rise",
}  # fmt: skip
_KIND_OF = {method: kind for kind, methods in _KINDS.items() for method in methods.split()}
# What a long text (LT) holds.
_LONGEST = 10240


def explanation(heatmap: Heatmap) -> tuple[str, str, str]:
    """Return the code of the kind of explanation that a heatmap is: value, scheme, meaning.

    A method that medcam does not know (another package's) is (130401, DCM, Visual explanation).
    """
    return _KIND_OF.get(heatmap.recipe.method.partition("(")[0].strip(), VISUAL_EXPLANATION)


def algorithm_name(heatmap: Heatmap) -> str:
    """Return how a DICOM object names what made it: 'medcam grad-cam', at most 64 characters."""
    return f"medcam {heatmap.recipe.method}"[:64]


def parameters(heatmap: Heatmap) -> list[str]:
    """Return the recipe as JSON in plain ASCII, cut into parts of at most 10240 characters to be joined without anything between."""
    text = json.dumps(heatmap.recipe.to_json(), separators=(",", ":"))
    return [text[start : start + _LONGEST] for start in range(0, len(text), _LONGEST)]


def algorithm_identification(heatmap: Heatmap) -> list[Dataset]:
    """Return what an Algorithm Identification Sequence holds; one item more for each part of the recipe that does not fit the first."""
    items = []
    for part in parameters(heatmap):
        item = Dataset()
        item.AlgorithmFamilyCodeSequence = [code("123110", "DCM", "Artificial Intelligence")]
        item.AlgorithmNameCodeSequence = [code(*explanation(heatmap))]
        item.AlgorithmName = algorithm_name(heatmap)
        item.AlgorithmVersion = __version__
        item.AlgorithmParameters = part
        item.AlgorithmSource = "medcam"
        items.append(item)
    return items


def quantity_definition(heatmap: Heatmap) -> list[Dataset]:
    """Return what a Quantity Definition Sequence holds: the kind of explanation, then the algorithm that it comes from."""
    quantity = Dataset()
    quantity.ValueType = "CODE"
    quantity.ConceptNameCodeSequence = [code("246205007", "SCT", "Quantity")]
    quantity.ConceptCodeSequence = [code(*explanation(heatmap))]
    texts = [
        ("111001", "Algorithm Name", algorithm_name(heatmap)),
        ("111003", "Algorithm Version", __version__),
        *(("111002", "Algorithm Parameters", part) for part in parameters(heatmap)),
    ]
    items = [quantity]
    for value, meaning, text in texts:
        item = Dataset()
        item.ValueType = "TEXT"
        item.ConceptNameCodeSequence = [code(value, "DCM", meaning)]
        item.TextValue = text
        items.append(item)
    return items
