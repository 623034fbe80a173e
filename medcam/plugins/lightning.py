"""A Lightning callback that watches maps while a network trains; for the package `lightning` as for `pytorch_lightning`."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from medcam.errors import UsageError
from medcam.options import at_least, one_of
from medcam.plugins.watching import Watch, begin, look_if_possible

# Both packages hold the same code under two names, and a trainer of one wants callbacks of its own.
_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _callback_classes() -> tuple[type, ...]:
    """Return the class of callbacks of each Lightning that the user has loaded, else of the first that is installed."""
    names = [name for name in _PACKAGES if sys.modules.get(name)]
    for name in () if names else _PACKAGES:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        names = [name]
        break
    if not names:
        raise UsageError("the callback needs Lightning, which is not installed: pip install 'medcam-xai[lightning]'")
    return tuple(sys.modules[name].Callback for name in names)


class MapWatcher(*_callback_classes()):  # type: ignore[misc]  # which base it is, is known when it runs
    """Looks at a few images every so often; see `medcam.plugins.watching`.

    The first look is at the network before its training, unless the images come from a function, which is called with the trainer. In
    distributed training only rank 0 looks. It works with strategies that leave the whole network on each device (one device, DDP).

    Parameters
    ----------
    watch
        What is watched, and where it is written.
    network
        The name of the module's attribute that takes images and gives scores, such as 'model'; '' for the module itself.
    every, unit
        How often: every so many 'epochs' or 'iterations' (batches, whether or not the optimizer steps at each).

    Raises
    ------
    UsageError
        If the interval is not a whole number of epochs or iterations.
    """

    def __init__(self, watch: Watch, *, network: str = "", every: int = 1, unit: str = "epochs") -> None:
        at_least("every", every)
        one_of("unit", unit, ("epochs", "iterations"))
        self.watch, self.network, self.every, self.unit = watch, network, every, unit

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Look at the network before its training, if it begins now and does not go on from a checkpoint."""
        if trainer.global_step == 0 and trainer.is_global_zero:
            begin(self.watch)
            if not callable(self.watch.images):
                self._look(trainer, pl_module, 0)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look after every so many iterations, if these count."""
        if self.unit == "iterations":
            self._look(trainer, pl_module, trainer.fit_loop.total_batch_idx + 1)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Look after every so many epochs, if these count."""
        if self.unit == "epochs":
            self._look(trainer, pl_module, trainer.current_epoch + 1)

    def _look(self, trainer: Any, pl_module: Any, step: int) -> None:
        if step % self.every or not trainer.is_global_zero:
            return
        try:
            network = pl_module.get_submodule(self.network)
        except AttributeError as error:
            raise UsageError(f"{type(pl_module).__name__} has no network '{self.network}': {error}") from error
        look_if_possible(self.watch, network, step, state=trainer)
