"""The network to be tried, with one clean pass that all measures share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medcam.engine.asked import AnyTarget, check_inputs
from medcam.engine.budget import copies_within
from medcam.engine.explaining import relevance
from medcam.engine.layers import feature_layers
from medcam.engine.skeleton import skeleton
from medcam.engine.study import Clean, Progress, Study
from medcam.engine.sweep import Setting, clean_pass, study_of
from medcam.engine.targets import as_target
from medcam.errors import UsageError

# From a network and its input to a map at the input's size.
Explain = Callable[[nn.Module, Float[Tensor, "b c *s"]], Float[Tensor, "b *s"]]


@contextmanager
def on_trial(
    model: nn.Module,
    inputs: Float[Tensor, "b c *s"],
    *,
    target: AnyTarget = None,
    score: str = "logit",
    activation: str | None = None,
    output: str | int | None = None,
    class_names: Sequence[str] = (),
    seed: int = 0,
    memory_mb: float | int | None = None,
    progress: Progress | None = None,
) -> Iterator[Study]:
    """Give the study of a network on a batch that the measures of this room ask; the network is left as it is.

    The class is settled on the clean output, so that perturbed copies are asked about the same one. Each pass sees the whole input; for a
    network that is run in sliding windows give a module that holds network and inferer.

    Parameters
    ----------
    score
        'logit', or 'probability', in which RISE and ROAD were published and which average drop needs. For accuracies, give a target of your
        own that is 1 where the output is right.
    target, activation, output, class_names, seed, memory_mb, progress
        As `medcam.relevance` takes them.

    Raises
    ------
    UsageError
        If the input is no batch of images, or there is no such target.
    ModelError
        If the network does not accept the input.
    """
    check_inputs(inputs)
    given = inputs.as_subclass(Tensor)
    asked = as_target(
        target, score=score, activation=activation, output=output, input_shape=tuple(given.shape), network=model,
        class_names=class_names,
    )  # fmt: skip
    with skeleton(model) as copied, torch.inference_mode(False):
        widths = () if isinstance(copied, torch.jit.ScriptModule) else feature_layers(model, given, output=output)
        copies = copies_within(memory_mb, given, widths)
        setting = Setting(copied, given, (), copies, seed, (), tuple(class_names), progress)
        captured, tails = clean_pass(setting, frozenset())
        clean = Clean(captured, asked.settled(captured.output), asked.reading, keep_graph=False)
        yield study_of(setting, clean, None, tails, [])


def explaining(
    *, method: str = "grad-cam", layer: str | None = None, target: AnyTarget = None, score: str = "logit",
    activation: str | None = None, output: str | int | None = None, seed: int = 0, memory_mb: float | int | None = None,
) -> Explain:  # fmt: skip
    """Return how maps are made, for the measures that make them anew: of noisy images, of randomized networks.

    Name the target: by default each pass explains what it predicts itself, and a map of another class would be compared.

    Parameters
    ----------
    method, layer, target, score, activation, output, seed, memory_mb
        As `medcam.relevance` takes them.
    """

    def explain(network: nn.Module, inputs: Float[Tensor, "b c *s"]) -> Float[Tensor, "b *s"]:
        found = relevance(
            network, inputs, method=method, layer=layer, target=target, score=score, activation=activation, output=output,
            seed=seed, memory_mb=memory_mb,
        )  # fmt: skip
        return found.on_input()

    return explain


def check_maps(study: Study, maps: Float[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
    """Return maps on the study's device, in at least single precision.

    Raises
    ------
    UsageError
        If there is not one map of the input's size for each sample.
    """
    expected = (study.inputs.shape[0], *study.inputs.shape[2:])
    if tuple(maps.shape) != expected:
        raise UsageError(
            f"maps of shape {tuple(maps.shape)} do not fit inputs of shape {tuple(study.inputs.shape)}: give one value for each voxel "
            "(`Relevance.on_input()`)"
        )
    return maps.detach().to(study.inputs.device, torch.promote_types(maps.dtype, torch.float32))


def check_domain(study: Study, domain: Bool[Tensor, "b *s"] | None) -> Bool[Tensor, "b *s"]:
    """Return where voxels may be removed: everywhere by default.

    Raises
    ------
    UsageError
        If there is not one flag for each voxel, or a sample has none.
    """
    shape = (study.inputs.shape[0], *study.inputs.shape[2:])
    if domain is None:
        return torch.ones(shape, dtype=torch.bool, device=study.inputs.device)
    if tuple(domain.shape) != shape or not bool(domain.flatten(1).any(1).all()):
        raise UsageError(
            f"a domain (the body, an organ) has shape {shape} and holds a voxel of each sample, unlike this one of {tuple(domain.shape)}"
        )
    return domain.to(study.inputs.device)
