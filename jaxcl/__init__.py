"""jaxcl: continual learning on JAX, as transforms of losses and optimizers."""

from jaxcl import losses, metrics, nn, ops, strategies, transforms
from jaxcl.compose import (
    OptState,
    after_task,
    chain,
    init_params,
    transform_loss,
    transform_optimizer,
)
from jaxcl.setup import array_data, context, context_of, setup_for, setup_for_linen
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
    "OptState",
    "Output",
    "Params",
    "Setup",
    "Strategy",
    "TaskData",
    "after_task",
    "array_data",
    "chain",
    "context",
    "context_of",
    "init_params",
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
