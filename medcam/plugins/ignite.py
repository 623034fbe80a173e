"""An Ignite handler that watches maps while a network trains; MONAI's trainers take it among their `train_handlers`."""

from __future__ import annotations

from typing import Any

from torch import nn

from medcam.errors import UsageError
from medcam.options import at_least, one_of
from medcam.plugins.watching import Watch, begin, look_if_possible

_UNITS = {"epochs": "EPOCH_COMPLETED", "iterations": "ITERATION_COMPLETED"}


class MapWatcher:
    """Looks at a few images every so often; see `medcam.plugins.watching`.

    The first look is at the network before its training, unless the images come from a function. In distributed training only rank 0 looks.

    Parameters
    ----------
    network
        What is trained, in plain or wrapped for distributed training.
    watch
        What is watched, and where it is written.
    every, unit
        How often: every so many 'epochs' or 'iterations'.

    Raises
    ------
    UsageError
        If Ignite is not installed, or the interval is not a whole number of epochs or iterations.
    """

    def __init__(self, network: nn.Module, watch: Watch, *, every: int = 1, unit: str = "epochs") -> None:
        _ignite()
        at_least("every", every)
        one_of("unit", unit, tuple(_UNITS))
        self.network, self.watch, self.every, self.unit = network, watch, every, unit

    def attach(self, engine: Any, event: Any = None) -> None:
        """Look whenever an event of the engine happens; by default at the end of every so many epochs or iterations.

        Parameters
        ----------
        engine
            The trainer, an `ignite.engine.Engine`.
        event
            Such as `Events.ITERATION_COMPLETED(every=50)`. The step is what the engine counts for it.
        """
        events = _ignite().engine.Events
        chosen = getattr(events, _UNITS[self.unit])(every=self.every) if event is None else event
        engine.add_event_handler(events.STARTED, self._start)
        engine.add_event_handler(chosen, self._look, chosen)

    def _start(self, engine: Any) -> None:
        if engine.state.iteration == 0 and _is_first():
            begin(self.watch)
            if not callable(self.watch.images):
                look_if_possible(self.watch, self.network, 0)

    def _look(self, engine: Any, event: Any) -> None:
        if _is_first():
            look_if_possible(self.watch, self.network, engine.state.get_event_attrib_value(event), state=engine.state)


def _is_first() -> bool:
    """Tell whether this is the one process that looks."""
    return bool(_ignite().distributed.get_rank() == 0)


def _ignite() -> Any:
    try:
        import ignite
        import ignite.distributed
        import ignite.engine
    except ModuleNotFoundError as error:
        raise UsageError(
            "the handler needs PyTorch Ignite, which is not installed: pip install 'medcam-xai[bundle]'"
        ) from error
    return ignite
