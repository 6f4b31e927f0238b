"""A callback for the ``Trainer`` of Hugging Face's transformers."""

from __future__ import annotations

import os
from typing import Any, Optional

import torch
from transformers import TrainerCallback

from srigl.torch import Sparse, sparsify

__all__ = ["SparsityCallback"]

_FILE = "srigl.pt"


class SparsityCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Makes the trainer's model sparse when training begins; options are those of :func:`srigl.torch.sparsify`.

    ``end_step`` is 75 % of the training's steps if it is not given. Masks go into the checkpoints, and are taken up from there.

    ``Trainer(..., callbacks=[srigl.transformers.SparsityCallback(0.9, weight_init="keep")])``
    """

    def __init__(self, sparsity: float = 0.0, *, end_step: Optional[int] = None, **options: Any) -> None:
        self.sparsity, self.end_step, self.options = sparsity, end_step, options
        self.sparse: Optional[Sparse] = None
        """What keeps the model sparse, once training has begun."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Once model and optimizer are there."""
        optimizer = kwargs["optimizer"]
        while not isinstance(optimizer, torch.optim.Optimizer) or hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        end_step = self.end_step if self.end_step is not None else state.max_steps * 3 // 4
        path = os.path.join(args.output_dir, f"checkpoint-{state.global_step}", _FILE)
        saved = torch.load(path, map_location="cpu") if state.global_step > 0 and os.path.exists(path) else None
        self.sparse = sparsify(
            kwargs["model"], optimizer, self.sparsity, end_step=end_step, state=saved, **self.options
        )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Beside the model."""
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        if self.sparse is not None and state.is_world_process_zero and os.path.isdir(folder):
            torch.save(self.sparse.state_dict(), os.path.join(folder, _FILE))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes the hooks off."""
        if self.sparse is not None:
            self.sparse.remove()
