"""A callback for the ``Trainer`` of Hugging Face's transformers."""

from __future__ import annotations

import os
import warnings
from typing import Any, Optional

import torch
from transformers import TrainerCallback

from srigl._callbacks import begin
from srigl._native import Error
from srigl.torch import Sparse

__all__ = ["SparsityCallback"]

_FILE = "srigl.pt"


class SparsityCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Makes the trainer's model sparse when training begins; options are those of :func:`srigl.torch.sparsify`.

    ``end_step`` is 75 % of the training's steps if it is not given. Masks go into the checkpoints, as ``srigl.pt``, and are taken up from the
    one that a training is resumed from; ``state`` gives them where that lies elsewhere. A second ``train()`` goes on with the masks that the
    model has.

    ``Trainer(..., callbacks=[srigl.transformers.SparsityCallback(0.9, weight_init="keep")])``
    """

    def __init__(
        self,
        sparsity: Optional[float] = None,
        *,
        end_step: Optional[float] = None,
        state: Optional[dict[str, Any]] = None,
        **options: Any,
    ) -> None:
        self.sparsity, self.end_step, self.options = sparsity, end_step, options
        self.sparse: Optional[Sparse] = None
        """What keeps the model sparse, once training has begun."""
        self._state = state

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Once model and optimizer are there."""
        end_step = self.end_step if self.end_step is not None else state.max_steps * 3 // 4
        saved, self._state = self._state, None
        if saved is None and state.global_step > 0:
            resumed = args.resume_from_checkpoint
            folders = [os.path.join(args.output_dir, f"checkpoint-{state.global_step}")]
            folders += [resumed] if isinstance(resumed, str) else []
            paths = [path for path in (os.path.join(folder, _FILE) for folder in folders) if os.path.exists(path)]
            if not paths:
                raise Error(
                    f"the training goes on from step {state.global_step}, and {' and '.join(folders)} have no {_FILE}: give its masks "
                    "to the callback, as state=torch.load(...)"
                )
            saved = torch.load(paths[0], map_location="cpu")
        self.sparse = begin(
            self.sparse,
            saved,
            kwargs["model"],
            kwargs["optimizer"],
            sparsity=self.sparsity,
            end_step=end_step,
            **self.options,
        )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Beside the model."""
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        if self.sparse is None or not state.is_world_process_zero:
            return
        if os.path.isdir(folder):
            torch.save(self.sparse.state_dict(), os.path.join(folder, _FILE))
        else:
            warnings.warn(f"{folder} is not there: this checkpoint has no masks", RuntimeWarning, stacklevel=2)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes the hooks off; of the best checkpoint, if the trainer has loaded that, the masks, too."""
        if self.sparse is None:
            return
        self.sparse.remove()
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            path = os.path.join(state.best_model_checkpoint, _FILE)
            if os.path.exists(path):
                self.sparse.load_state_dict(torch.load(path, map_location="cpu"))
