"""A callback for Lightning."""

from __future__ import annotations

from typing import Any, Optional

try:
    from lightning.pytorch import Callback
except ImportError:  # The same under its other name.
    from pytorch_lightning import Callback  # type: ignore[assignment, unused-ignore]

from srigl._callbacks import begin
from srigl._native import Error
from srigl.torch import Sparse

__all__ = ["SparsityCallback"]


class SparsityCallback(Callback):  # type: ignore[misc, unused-ignore]
    """Makes the module sparse when training begins; options are those of :func:`srigl.torch.sparsify`.

    ``end_step`` is 75 % of the training's steps if it is not given. Masks go into Lightning's checkpoints, and are taken up from
    there; a second ``fit`` goes on with those that the module has.

    ``Trainer(..., callbacks=[srigl.lightning.SparsityCallback(0.9)])``
    """

    def __init__(self, sparsity: Optional[float] = None, *, end_step: Optional[float] = None, **options: Any) -> None:
        self.sparsity, self.end_step, self.options = sparsity, end_step, options
        self.sparse: Optional[Sparse] = None
        """What keeps the module sparse, once training has begun."""
        self._state: Optional[dict[str, Any]] = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Once module and optimizer are there."""
        if len(trainer.optimizers) != 1:
            raise Error(
                f"the module has {len(trainer.optimizers)} optimizers: call srigl.torch.sparsify for each instead"
            )
        end_step = self.end_step
        if end_step is None:
            steps = trainer.estimated_stepping_batches
            if not 0 < steps < float("inf"):
                raise Error("give the callback an end_step: the trainer does not say how many steps there will be")
            end_step = int(steps) * 3 // 4
        # Lightning restores callbacks for tests, too.
        saved, self._state = self._state if trainer.ckpt_path is not None else None, None
        if saved is None and trainer.ckpt_path is not None and trainer.global_step > 0:
            raise Error(f"`{trainer.ckpt_path}` has no masks: it was saved without this callback")
        self.sparse = begin(
            self.sparse,
            saved,
            pl_module,
            trainer.optimizers[0],
            sparsity=self.sparsity,
            end_step=end_step,
            **self.options,
        )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Takes the hooks off."""
        if self.sparse is not None:
            self.sparse.remove()

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {} if self.sparse is None else self.sparse.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._state = state_dict or None
