"""What callbacks of trainers share."""

from __future__ import annotations

from typing import Any, Optional

from torch import nn

from srigl.torch import Sparse, sparsify


def begin(
    previous: Optional[Sparse], state: Optional[dict[str, Any]], model: nn.Module, optimizer: Any, **options: Any
) -> Sparse:
    """Makes a model sparse; goes on from a state, or with the masks that the same model has from a training before."""
    if previous is not None:
        previous.remove()
        ours = {id(parameter) for parameter in model.parameters()}
        if state is None and all(id(layer.parameter) in ours for layer in previous.layers):
            # The schedule starts anew, the topology does not.
            state = {**previous.state_dict(), "step": 0}
    return sparsify(model, optimizer, state=state, **options)
