"""jaxcl: continual learning on JAX, as transforms of losses and optimizers."""

from jaxcl import losses, metrics, nn, ops, strategies, transforms
from jaxcl.compose import chain, transform_loss, transform_optimizer
from jaxcl.setup import array_data, context, setup_for, setup_for_linen
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
    strategy,
)

__version__ = "0.2.0.dev0"

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
    "chain",
    "context",
    "losses",
    "metrics",
    "nn",
    "ops",
    "setup_for",
    "setup_for_linen",
    "strategies",
    "strategy",
    "transform_loss",
    "transform_optimizer",
    "transforms",
]
