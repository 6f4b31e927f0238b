from typing import Any, Optional, Union, final

import numpy as np
import numpy.typing as npt

__all__ = [
    "Engine",
    "Error",
    "Method",
    "Network",
    "TrainingLayer",
    "UpdateSchedule",
    "inference_cost",
    "initial_masks",
    "initial_weights",
    "layer_sparsities",
    "layer_stats",
    "matching",
    "methods",
    "target_sparsity",
    "training_flops",
    "update",
]

_Floats = npt.NDArray[np.float32]
_Bits = npt.NDArray[np.uint8]
_Spec = tuple[str, list[int], bool]
_Window = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]

class Error(ValueError): ...

@final
class Method:
    name: str
    label: str
    settings: dict[str, Union[float, str]]
    sparse: bool
    updates: str
    gradients: str
    momentum: float
    keeps_inactive_weights: bool
    starts_from_dense_weights: bool
    starts_dense: bool
    def __new__(cls, name: str, settings: dict[str, Any]) -> Method: ...
    def initial_with(self, init: str) -> str: ...
    def sparsity_at(self, sparsity: float, progress: float) -> float: ...
    def inactive_decay(self, sparsity: float) -> float: ...
    def gradient_positions(
        self, mask: _Bits, neurons: int, sparsity: float, weights: _Floats
    ) -> tuple[str, Optional[_Bits]]: ...

@final
class UpdateSchedule:
    end_step: int
    delta_t: int
    grad_accumulation: int
    def __new__(
        cls,
        end_step: int,
        *,
        delta_t: int = 100,
        drop_fraction: float = 0.3,
        drop_schedule: str = "cosine",
        grad_accumulation: int = 1,
    ) -> UpdateSchedule: ...
    def __getnewargs_ex__(self) -> tuple[tuple[int], dict[str, Any]]: ...
    def is_update(self, step: int) -> bool: ...
    def gathers_gradient(self, step: int) -> bool: ...
    def drop_fraction_at(self, step: int) -> float: ...
    def last_update(self) -> Optional[int]: ...
    def progress_at(self, step: int) -> float: ...

@final
class TrainingLayer:
    output_shape: list[int]
    @staticmethod
    def linear(mask: _Bits, neurons: int) -> TrainingLayer: ...
    @staticmethod
    def conv2d(
        mask: _Bits, neurons: int, window: _Window, groups: int, input: tuple[int, int, int]
    ) -> TrainingLayer: ...
    def forward(self, values: _Floats, bias: Optional[_Floats], batch: int, x: _Floats) -> _Floats: ...
    def backward(
        self, values: _Floats, batch: int, x: _Floats, dy: _Floats, wants_dx: bool
    ) -> tuple[Optional[_Floats], _Floats]: ...

@final
class Network:
    def __new__(cls, nodes: list[tuple[str, str, list[int], dict[str, Any]]]) -> Network: ...
    @staticmethod
    def load(path: Any) -> Network: ...
    def save(self, path: Any) -> None: ...
    def layers(self) -> list[tuple[str, int, int, Optional[int], bool]]: ...

@final
class Engine:
    input_shape: list[int]
    output_shape: list[int]
    bytes: int
    isa: str
    def __new__(cls, network: Network, threads: Optional[int] = None) -> Engine: ...
    def run(self, batch: int, input: _Floats) -> _Floats: ...

def methods() -> list[tuple[str, str, list[tuple[str, str, Union[float, str]]]]]: ...
def layer_sparsities(layers: list[_Spec], sparsity: float, distribution: str) -> list[float]: ...
def target_sparsity(positions: int, sparsity: float) -> float: ...
def initial_masks(
    method: Method,
    layers: list[_Spec],
    weights: list[Optional[_Floats]],
    initial: str,
    sparsity: float,
    distribution: str,
    seed: int,
) -> list[tuple[float, _Bits]]: ...
def initial_weights(mask: _Bits, neurons: int, weights: _Floats, init: str, seed: int, layer: int) -> _Floats: ...
def update(
    method: Method, alpha: float, layers: list[Any], seed: int, step: int
) -> list[tuple[Optional[_Bits], str]]: ...
def layer_stats(mask: _Bits, neurons: int) -> str: ...
def inference_cost(layers: list[tuple[list[int], int, float]]) -> tuple[float, float, float]: ...
def training_flops(dense: float, sparse: float, delta_t: int, images: float) -> float: ...
def matching(option: str, patterns: list[str], names: list[str]) -> list[bool]: ...
