"""jaxcl: continual learning on JAX, as transforms of losses and optimizers."""

from jaxcl import (
    capture,
    gates,
    inspection,
    linalg,
    losses,
    metrics,
    models,
    strategies,
    transforms,
)
from jaxcl.compose import chain, transform_loss, transform_optimizer
from jaxcl.heads import context, setup_for
from jaxcl.types import (
    Batch,
    Context,
    LayerSpec,
    NormSpec,
    Output,
    Params,
    Setup,
    Strategy,
    TaskData,
    array_data,
    strategy,
)

__all__ = [
    "Batch",
    "Context",
    "LayerSpec",
    "NormSpec",
    "Output",
    "Params",
    "Setup",
    "Strategy",
    "TaskData",
    "array_data",
    "capture",
    "chain",
    "context",
    "gates",
    "inspection",
    "linalg",
    "losses",
    "metrics",
    "models",
    "setup_for",
    "strategies",
    "strategy",
    "transform_loss",
    "transform_optimizer",
    "transforms",
]
