"""Average drop and gain: what the score loses, or wins, when only what the map shows is left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from medcam.engine.baselines import baseline
from medcam.engine.study import Study
from medcam.errors import UsageError
from medcam.trials.scoring import check_maps


@dataclass(frozen=True, eq=False)
class Masked:
    """Scores of images multiplied by their maps, one of each sample; all are NaN for a map without a positive value.

    Parameters
    ----------
    clean, masked
        The probability of the image, and of the image that the map lets through.
    drop
        The share of the probability that is lost, 0 where it rises: `max(0, clean - masked) / clean`. Its mean is the average drop. NaN
        where the clean probability is 0.
    gain
        The share of what was missing to 1 that is won, 0 where it falls: `max(0, masked - clean) / (1 - clean)`. NaN where the clean
        probability is 1.
    rises
        1 where the probability rises, else 0. Its mean is the increase in confidence.
    shown
        The mean of the map scaled to 0..1. A map that shows everything drops nothing: report the drop beside this.
    """

    clean: Float[Tensor, " b"]
    masked: Float[Tensor, " b"]
    drop: Float[Tensor, " b"]
    gain: Float[Tensor, " b"]
    rises: Float[Tensor, " b"]
    shown: Float[Tensor, " b"]


def drop_and_gain(study: Study, maps: Float[Tensor, "b *s"], *, fill: str | float | int | Tensor = "zero") -> Masked:
    """Return what is lost and won when images are faded by their maps; one pass.

    Negative relevance and NaN count as 0, and a map is divided by its maximum.

    Parameters
    ----------
    study
        Of probabilities: `on_trial(..., score='probability')`.
    fill
        What an image fades into where the map is low, as `medcam.engine.baselines.baseline` takes it. 'zero' multiplies the image by the
        map as in the papers; in raw CT that turns air and bone into water, so choose 'min' there.

    Raises
    ------
    UsageError
        If the study's scores are no probabilities, of which alone a relative drop means something.

    References
    ----------
    Chattopadhay et al., Grad-CAM++, WACV 2018, section 5.1 (average drop, increase in confidence: shares of the class that is explained,
    relative to its own clean probability); Zhang et al., Opti-CAM, 2023, section 4.1 (average gain).
    """
    clean = study.scores
    if study.clean.target.score == "logit" or bool(((clean < 0) | (clean > 1)).any()):
        raise UsageError(
            "average drop and gain are shares of a probability; put the network on trial with score='probability'"
        )
    given = torch.where(torch.isfinite(check_maps(study, maps)), maps.to(study.inputs.device), 0).clamp(min=0)
    highest = given.flatten(1).amax(1).reshape(-1, *[1] * (given.ndim - 1))
    weights = (given / torch.where(highest > 0, highest, 1)).to(study.inputs.dtype)
    blank = baseline(study.inputs, float(fill) if isinstance(fill, int) else fill)
    faded = torch.lerp(blank, study.inputs, weights.unsqueeze(1))
    masked = study.scores_of(1, lambda _: faded[None])[0]
    nothing = torch.where(highest.flatten() > 0, 0.0, torch.nan).to(clean)
    lost, won = (clean - masked).clamp(min=0), (masked - clean).clamp(min=0)
    return Masked(
        clean,
        masked + nothing,
        torch.where(clean > 0, lost / clean, torch.nan) + nothing,
        torch.where(clean < 1, won / (1 - clean), torch.nan) + nothing,
        (masked > clean).to(clean.dtype) + nothing,
        weights.flatten(1).mean(1).to(clean.dtype) + nothing,
    )
