"""A callback for Lightning."""

from __future__ import annotations

from typing import Any, Optional

try:
    from lightning.pytorch import Callback
except ImportError:  # The same under its other name.
    from pytorch_lightning import Callback  # type: ignore[assignment, unused-ignore]

from srigl.torch import Sparse, sparsify

__all__ = ["SparsityCallback"]


class SparsityCallback(Callback):  # type: ignore[misc, unused-ignore]
    """Makes the module sparse when training begins; options are those of :func:`srigl.torch.sparsify`.

    ``end_step`` is 75 % of the training's steps if it is not given. Masks go into Lightning's checkpoints, and are taken up from there.

    ``Trainer(..., callbacks=[srigl.lightning.SparsityCallback(0.9)])``
    """

    def __init__(self, sparsity: float = 0.0, *, end_step: Optional[int] = None, **options: Any) -> None:
        self.sparsity, self.end_step, self.options = sparsity, end_step, options
        self.sparse: Optional[Sparse] = None
        """What keeps the module sparse, once training has begun."""
        self._state: Optional[dict[str, Any]] = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Once module and optimizer are there."""
        end_step = self.end_step
        if end_step is None:
            end_step = int(trainer.estimated_stepping_batches) * 3 // 4
        [optimizer] = trainer.optimizers
        self.sparse = sparsify(
            pl_module, optimizer, self.sparsity, end_step=end_step, state=self._state, **self.options
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
