"""jaxcl: continual learning on JAX, as transforms of losses and optimizers."""

from jaxcl import _interrupts as _interrupts  # before JAX is imported

# isort: split
from jaxcl import (
    data,
    features,
    linearity,
    losses,
    metrics,
    nn,
    ops,
    statistics,
    strategies,
    transforms,
)
from jaxcl.compose import chain
from jaxcl.contract import Strategy, strategy
from jaxcl.hooks import (
    OptState,
    init_params,
    transform_optimizer,
)
from jaxcl.inputs import array_data, context, context_of
from jaxcl.objective import transform_loss
from jaxcl.opening import load_run
from jaxcl.predicting import predict
from jaxcl.setup import (
    setup_for,
    setup_for_equinox,
    setup_for_linen,
    setup_for_nnx,
)
from jaxcl.tasks import after_task, before_task
from jaxcl.types import (
    Batch,
    Context,
    LayerSpec,
    NormSpec,
    Output,
    Params,
    Setup,
    TaskData,
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
    "before_task",
    "chain",
    "context",
    "context_of",
    "data",
    "features",
    "init_params",
    "linearity",
    "load_run",
    "losses",
    "metrics",
    "nn",
    "ops",
    "predict",
    "setup_for",
    "setup_for_equinox",
    "setup_for_linen",
    "setup_for_nnx",
    "statistics",
    "strategies",
    "strategy",
    "transform_loss",
    "transform_optimizer",
    "transforms",
]
