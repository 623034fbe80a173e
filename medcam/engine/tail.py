"""What follows a layer, re-run alone.

While the network runs once, every module that ends before the layer is remembered by what it gave. When the tail is re-run, each of these
answers from memory, the layer gives the activation that it is told to, and only what follows computes. The code between modules (a sum, a
concatenation) runs as it stands, so nothing is assumed of the network's structure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from medcam.engine.capture import Activation, feature_map, with_tensor
from medcam.engine.layout import from_channels_first
from medcam.engine.skeleton import find_layer, is_copy, run


@dataclass(frozen=True, eq=False)
class Tail:
    """The part of a network behind a layer, for one batch.

    Parameters
    ----------
    answers
        The outputs of each module's calls that ended before the layer's last, in order.
    touched
        Modules whose outputs are changed in place later, so that each run needs copies of its own.
    template
        The layer's own output, into which an activation is put.
    weighted
        The modules with weights of their own that run behind the layer, once for each call.
    """

    network: nn.Module
    layer: str
    clean: Activation
    template: Any
    inputs: Tensor
    answers: dict[nn.Module, list[Any]]
    touched: frozenset[nn.Module]
    weighted: tuple[nn.Module, ...]

    def run(self, activations: Tensor) -> Any:
        """Return the network's output where the layer gives `activations`, `m*b c *t`: m copies of the whole batch, one after another."""
        batch = self.inputs.shape[0]
        copies = activations.shape[0] // batch
        old, _ = feature_map(self.layer, self.template, self.inputs, self.clean.layout)
        # A clone, since the network may go on in place from here.
        native = from_channels_first(activations, self.clean.layout, old).to(self.clean.native.dtype, copy=True)
        given = {module: list(outputs) for module, outputs in self.answers.items()}
        with _answering(given, find_layer(self.network, self.layer), with_tensor(self.template, old, native)) as again:
            return again(
                self.network, _repeated(self.inputs, copies, batch),
                lambda module, output: _repeated(output, copies, batch, fresh=module in self.touched),
            )  # fmt: skip


class Recorder:
    """Watches one forward pass of a skeleton and remembers what modules gave before a layer's last call ended.

    Use it around `capture`, and ask it for the `tail` afterwards.
    """

    def __init__(self, network: nn.Module, layer: str) -> None:
        self._network, self._layer = network, layer
        self._target = find_layer(network, layer)
        self._touched: frozenset[nn.Module] = frozenset()
        self._calls: list[tuple[nn.Module, Any]] = []
        # For each module that runs: how many calls had ended when it began, how often the layer had run, and what it was given.
        self._running: list[tuple[int, int, list[tuple[Tensor, int]]]] = []
        self._versions: dict[int, int] = {}
        self._fired = 0
        self._before: list[tuple[nn.Module, Any]] = []
        self._versions_before: dict[int, int] = {}
        self._template: Any = None
        self._weighted: list[nn.Module] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Remember what runs inside the block."""
        self._calls, self._running, self._versions, self._fired = [], [], {}, 0
        self._before, self._versions_before = [], {}
        handles = []
        if is_copy(self._network):
            for module in self._network.modules():
                handles += [module.register_forward_pre_hook(self._starts), module.register_forward_hook(self._ends)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._calls = []

    def _starts(self, _module: nn.Module, args: Any) -> None:
        given = [(item, item._version) for item in tree_leaves(args) if isinstance(item, Tensor)]
        self._running.append((len(self._calls), self._fired, given))

    def _ends(self, module: nn.Module, _args: Any, output: Any) -> None:
        began, fired, given = self._running.pop()
        # What ran inside this module is answered for by the module itself.
        del self._calls[began:]
        if fired == self._fired:
            # What it has changed in place, as an in-place ReLU does, it will not change again, since it will not run again.
            for item, version in given:
                if id(item) in self._versions:
                    self._versions[id(item)] += item._version - version
        if module is self._target:
            self._fired += 1
            self._before, self._versions_before = list(self._calls), dict(self._versions)
            self._template, self._weighted = output, []
        elif next(module.parameters(recurse=False), None) is not None:
            self._weighted.append(module)
        if module in self._touched:
            output = tree_map(lambda item: item.clone() if isinstance(item, Tensor) else item, output)
        self._calls.append((module, output))
        self._versions |= {id(item): item._version for item in tree_leaves(output) if isinstance(item, Tensor)}

    def spoiled(self) -> bool:
        """Tell whether something that was remembered has been changed in place by what will run again; then watch the pass once more."""
        expected = self._versions_before
        spoiled = {
            module
            for module, output in self._before
            if any(isinstance(item, Tensor) and item._version != expected[id(item)] for item in tree_leaves(output))
        }
        self._touched |= spoiled
        return bool(spoiled)

    def tail(self, clean: Activation, inputs: Tensor) -> Tail | None:
        """Return the tail, or None for a network of which no copy could be made."""
        if not is_copy(self._network) or self._template is None:
            return None
        answers: dict[nn.Module, list[Any]] = {}
        for module, output in self._before:
            detached = tree_map(lambda item: item.detach() if isinstance(item, Tensor) else item, output)
            answers.setdefault(module, []).append(detached)
        template = tree_map(lambda item: item.detach() if isinstance(item, Tensor) else item, self._template)
        return Tail(self._network, self._layer, clean, template, inputs, answers, self._touched, tuple(self._weighted))


def substituted(network: nn.Module, inputs: Tensor, layer: str, clean: Activation, activations: Tensor) -> Any:
    """Return what `Tail.run` does by running the whole network and exchanging the layer's output: for networks that keep no tail."""
    calls = 0

    def exchange(_module: nn.Module, _args: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < clean.calls:
            return None
        old, _ = feature_map(layer, output, given, clean.layout)
        return with_tensor(
            output, old, from_channels_first(activations, clean.layout, old[: inputs.shape[0]]).to(old.dtype, copy=True)
        )

    given = _repeated(inputs, activations.shape[0] // inputs.shape[0], inputs.shape[0])
    handle = find_layer(network, layer).register_forward_hook(exchange)
    try:
        return run(network, given)
    finally:
        handle.remove()


@contextmanager
def _answering(
    answers: dict[nn.Module, list[Any]], layer: nn.Module, output: Any
) -> Iterator[Callable[[nn.Module, Tensor, Callable[[nn.Module, Any], Any]], Any]]:
    """Let the modules of a skeleton answer from memory inside the block; yield what runs it."""
    # The layer's last call gives the new activation as it is, and its earlier ones what they gave.
    last = object()
    queues = {module: list(outputs) for module, outputs in answers.items()}
    queues.setdefault(layer, []).append(last)
    own = {module: vars(module).get("forward") for module in queues}

    def again(network: nn.Module, inputs: Tensor, repeated: Callable[[nn.Module, Any], Any]) -> Any:
        for module, queue in queues.items():
            plain = module.forward

            def forward(
                *args: Any, _m: nn.Module = module, _q: list[Any] = queue, _f: Any = plain, **named: Any
            ) -> Any:
                if not _q:
                    return _f(*args, **named)
                answer = _q.pop(0)
                return output if answer is last else repeated(_m, answer)

            module.forward = forward
        return run(network, inputs)

    try:
        yield again
    finally:
        for module, forward in own.items():
            vars(module).pop("forward", None)
            if forward is not None:
                vars(module)["forward"] = forward


def _repeated(output: Any, copies: int, batch: int, *, fresh: bool = False) -> Any:
    """Return what a module would have given for `copies` batches one after another: views where a batch is one sample."""

    def repeat(item: Any) -> Any:
        if not isinstance(item, Tensor) or item.ndim == 0 or item.shape[0] % batch:
            return item
        many = item
        if copies > 1 and item.shape[0] == 1:
            many = item.expand(copies, *item.shape[1:])
        elif copies > 1:
            many = item.repeat(copies, *[1] * (item.ndim - 1))
        return many.clone() if fresh and (many is item or many.stride(0) == 0) else many

    return tree_map(repeat, output) if copies > 1 or fresh else output
