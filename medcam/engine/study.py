"""What a method may ask: one network, one batch, one settled target, one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from medcam.engine.capture import INPUT, Activation, Captured, capture, gradients, slope_at
from medcam.engine.cells import on_voxels
from medcam.engine.directions import Mean
from medcam.engine.footprint import Footprint
from medcam.engine.outputs import Reading
from medcam.engine.settled import Settled, Unsettled
from medcam.engine.skeleton import mixes_samples, run
from medcam.engine.tail import Tail, substituted
from medcam.errors import UsageError

# Called with how much is done, and how much there is.
Progress = Callable[[int, int], object]


@dataclass(frozen=True, eq=False)
class Remark:
    """A sentence, the samples that it holds for (1 or 0), and the value of each that stands in it."""

    sentence: str
    flags: Float[Tensor, " b"]
    values: Float[Tensor, " b"]


@dataclass(frozen=True, eq=False)
class Clean:
    """The clean pass of a batch and one target on it.

    Parameters
    ----------
    target
        Settled: what it decides by looking at an output (the class, the region) it has decided on the clean one.
    reading
        How the output is read, for other questions about it.
    keep_graph
        Whether gradients will be asked for again after the first time.
    mean
        The gradient's mean over each channel, where that alone is known.
    """

    captured: Captured
    target: Settled
    reading: Reading
    keep_graph: bool
    mean: Mean | None = None

    @cached_property
    def live_scores(self) -> Float[Tensor, " b"]:
        """The score of each sample, in the graph."""
        with torch.inference_mode(False), torch.enable_grad():
            return self.target(self.captured.output)

    @property
    def scores(self) -> Float[Tensor, " b"]:
        """The score of each sample."""
        return self.live_scores.detach()

    @cached_property
    def slopes(self) -> dict[str, Tensor]:
        """The gradient of each sample's own score at every captured layer, from one backward pass.

        Raises
        ------
        UsageError
            If the score does not depend on a layer.
        """
        names = [name for name in self.captured.layers if name != INPUT]
        return gradients(self.captured, self.live_scores, names, keep_graph=self.keep_graph)


@dataclass(frozen=True, eq=False)
class Study:
    """One network on one batch with one target at one layer; every quantity is computed when first asked for, and once.

    Parameters
    ----------
    network
        A skeleton: nothing here touches the user's own.
    inputs
        `b c *s`.
    clean
        The clean pass, and what it is asked about.
    layer, footprint
        What is looked at and where its cells lie, or None for methods that look at the input alone.
    tail
        What follows the layer, if the method re-runs it.
    copies
        How many perturbed copies of the batch run at once.
    seed
        Of everything random.
    remarks
        What the method wants its reader to know.
    progress
        Told how many perturbed copies of how many have been scored, now and then.
    """

    network: nn.Module
    inputs: Float[Tensor, "b c *s"]
    clean: Clean
    layer: str | None
    footprint: Footprint | None
    tail: Tail | None
    copies: int
    seed: int
    remarks: list[Remark]
    progress: Progress | None = None

    @property
    def scores(self) -> Float[Tensor, " b"]:
        """The clean score of each sample."""
        return self.clean.scores

    @cached_property
    def activation(self) -> Float[Tensor, "b c *t"]:
        """The layer's activation, channels first, outside any graph."""
        return self._given.features

    @property
    def rounding(self) -> float:
        """The relative rounding error of the numbers that the layer gives."""
        return torch.finfo(self._given.native.dtype).eps

    @property
    def gradient(self) -> Float[Tensor, "b c *t"]:
        """The gradient of each sample's own score at the layer's activation.

        Raises
        ------
        UsageError
            If the score does not depend on the layer.
        """
        return self.clean.slopes[self._layer]

    def gradient_of(self, scores: Float[Tensor, " b"], layer: str | None = None) -> Float[Tensor, "b c *t"]:
        """Return the gradient of any scores that were made from the clean pass, at this study's layer or another captured one."""
        name = self._layer if layer is None else layer
        return gradients(self.clean.captured, scores, [name], keep_graph=True)[name]

    def tail_gradient(self) -> Float[Tensor, "b c *t"]:
        """Return the gradient of the score at the activation by running what follows the layer once more: for passes without a graph."""
        leaf = self.activation.detach().requires_grad_()
        with torch.inference_mode(False), torch.enable_grad():
            scores = self.clean.target(self._from_layer(leaf))
        return slope_at(scores, leaf, self._layer)

    def settle(self, target: Unsettled) -> Settled:
        """Return another question, settled on the same clean output."""
        return target.read(self.clean.reading).settled(self.clean.captured.output)

    def curvature(self) -> Float[Tensor, "b c *t"]:
        """Return the product of the score's Hessian at the activation with the activation itself."""
        root = self._given.native
        with torch.inference_mode(False), torch.enable_grad():
            (slope,) = torch.autograd.grad(self.clean.live_scores.sum(), root, create_graph=True)
            if not slope.requires_grad:  # the score is linear in the activation
                return torch.zeros_like(self.activation)
            # Zeros where the slope depends on something else that needs a gradient, and not on the activation.
            (bend,) = torch.autograd.grad(slope, root, root.detach(), retain_graph=True, materialize_grads=True)
        return Activation(bend, self._given.layout, 1).features

    def at(self, inputs: Float[Tensor, "b c *s"]) -> tuple[Float[Tensor, "b k *t"], Float[Tensor, "b k *t"]]:
        """Return the activation and the gradient of the score for another input of the same shape."""
        name = self._layer
        again = capture(self.network, inputs, [name], layouts={name: self._given.layout})
        with torch.inference_mode(False), torch.enable_grad():
            scores = self.clean.target(again.output)
        return again.layers[name].features, gradients(again, scores, [name])[name]

    def scores_of(self, count: int, make: Callable[[slice], Float[Tensor, "m b c *s"]]) -> Float[Tensor, "count b"]:
        """Return the scores of `count` perturbed copies of the batch, without a graph.

        Parameters
        ----------
        make
            Gives the copies of a range; only a few exist at once.
        """
        return self._scores(count, make, lambda copies: run(self.network, copies))

    def scores_from(self, count: int, make: Callable[[slice], Float[Tensor, "m b c *t"]]) -> Float[Tensor, "count b"]:
        """Return the scores where the layer gives other activations; only what follows the layer runs again."""
        return self._scores(count, make, self._from_layer)

    def _from_layer(self, activations: Float[Tensor, "n c *t"]) -> Any:
        if self.tail is not None:
            return self.tail.run(activations)
        return substituted(self.network, self.inputs, self._layer, self._given, activations)

    def on_input(self, values: Float[Tensor, "*b t"]) -> Tensor:
        """Return maps on the layer's cells at the input's size: linear between cell centres, constant beyond the outermost."""
        if self.footprint is None:
            raise UsageError("this method looks at no layer, so it has no cells to interpolate")
        sides = self.inputs.shape[2:]
        return on_voxels(values, self.footprint.stride, self.footprint.offset, tuple(sides))

    def noisy(self, count: int, sigma: float) -> Iterator[Float[Tensor, "b c *s"]]:
        """Yield copies of the input with Gaussian noise of `sigma` times each sample's range of intensities, the same for each sample.

        The noise is drawn for one sample and shared by the batch, so that each sample is explained as if alone.
        """
        flat = self.inputs.flatten(1)
        width = (flat.amax(1) - flat.amin(1)).reshape(-1, *[1] * (self.inputs.ndim - 1))
        generator = self.generator()
        for _ in range(count):
            noise = torch.randn(self.inputs.shape[1:], generator=generator, dtype=torch.float32)
            yield self.inputs + sigma * width * noise.to(self.inputs)

    def generator(self) -> torch.Generator:
        """Return a fresh source of random numbers on the CPU, so that a seed means the same on every device."""
        return torch.Generator().manual_seed(self.seed)

    def note(
        self,
        sentence: str,
        samples: Iterable[int] | None = None,
        *,
        where: Bool[Tensor, " b"] | None = None,
        value: Float[Tensor, " b"] | None = None,
    ) -> None:
        """Let the reader of these samples (all by default) know; nothing is read from the device before all of the answer is.

        Parameters
        ----------
        sentence
            With `{value}` or `{value:.0%}` where each sample's value stands.
        samples, where
            Which samples, by number or as flags on the device.
        """
        batch, like = self.inputs.shape[0], self.inputs
        flags = torch.ones(batch, device=like.device) if where is None else where.to(torch.float32)
        if samples is not None:
            chosen = torch.zeros(batch)
            chosen[list(samples)] = 1
            flags = chosen.to(like.device)
        self.remarks.append(Remark(sentence, flags, flags if value is None else value.detach()))

    @property
    def _layer(self) -> str:
        if self.layer is None:
            raise UsageError("this method looks at no layer")
        return self.layer

    @property
    def _given(self) -> Activation:
        return self.clean.captured.layers[self._layer]

    def _scores(self, count: int, make: Callable[[slice], Tensor], answer: Callable[[Tensor], Any]) -> Tensor:
        batch, found = self.inputs.shape[0], []
        copies = 1 if mixes_samples(self.network) else self.copies
        with torch.inference_mode(False), torch.no_grad():
            for start in range(0, count, copies):
                made = make(slice(start, min(start + copies, count)))
                output = answer(made.flatten(0, 1).to(self.inputs.dtype))
                found += [self.clean.target(part).detach() for part in _batches(output, made.shape[0], batch)]
                if self.progress is not None:
                    self.progress(len(found), count)
        return torch.stack(found).to(self.scores.dtype)


def _batches(output: Any, count: int, batch: int) -> Iterator[Any]:
    """Yield the outputs of `count` batches that ran as one."""

    def rows(item: Any) -> Any:
        return item[place] if isinstance(item, Tensor) and item.shape[:1] == (count * batch,) else item

    for n in range(count):
        place = slice(n * batch, (n + 1) * batch)
        yield output if count == 1 else tree_map(rows, output)
