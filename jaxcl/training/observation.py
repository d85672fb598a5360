"""Observes a network in training from outside: its state and its outputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcl.contract import Strategy
from jaxcl.inputs import context
from jaxcl.nn.products import is_channels_first
from jaxcl.predicting import make_forward
from jaxcl.training.problem import Problem, init_of, setup_of, strategy_for
from jaxcl.training.state import SeedState
from jaxcl.training.trainer import make_trainer
from jaxcl.types import Setup


def strategy_of(problem: Problem, setup: Setup) -> Strategy:
    """The strategy; if seeds differ in their settings, that of the first seed."""
    first = {name: values[0] for name, values in problem.settings.items()}
    return strategy_for(problem, setup, **first)


def shapes_of_seed(problem: Problem) -> SeedState:
    """Shapes and dtypes of a seed's state."""
    setup = setup_of(problem)
    trainer = make_trainer(
        setup,
        strategy_of(problem, setup),
        problem.optimizer,
        problem.plan,
        init_of(problem),
        masked=False,
    )
    return jax.eval_shape(trainer.init, jax.random.key(0))


def forward_reads_state(problem: Problem) -> bool:
    """Whether a forward pass in evaluation mode needs the strategy's state.

    Most do not: an anchor, an importance or a memory is only for training.
    """
    setup, seed = setup_of(problem), shapes_of_seed(problem)
    forward = make_forward(setup, strategy_of(problem, setup))

    def answers(state, params, model_state):
        x = jnp.zeros(setup.example.shape, setup.example.dtype)
        batch = context(x, jnp.zeros(len(x), int), task=0).batch
        out = forward(params, model_state, state, batch, jnp.zeros((), jnp.int32))
        return out.logits, out.taps

    given = (seed.strategy_state, seed.params, seed.model_state)
    jaxpr = jax.make_jaxpr(answers)(*given).jaxpr
    read = {id(v) for v in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(v) in read for v in equation.outvars):
            read |= {id(v) for v in equation.invars}
    of_state = len(jax.tree.leaves(seed.strategy_state))
    return any(id(v) in read for v in jaxpr.invars[:of_state])


def taps_of(setup: Setup, layers: tuple[str, ...] = ()) -> dict[str, str]:
    """Where the features of each layer are found: layer -> the tap that has them.

    A layer's output, after normalisation, nonlinearity and pooling, is the input of the
    next layer. If the next layer reads the sum of several layers, or unknown ones, the
    features have its name, "into NAME".

    Args:
      setup: knows the network's layers.
      layers: the layers wanted; all if none is named.

    Raises:
      ValueError: an unknown name, or a network without features.
    """
    found: dict[str, str] = {}
    for reader in setup.layers:
        if reader.reads_input or reader.feeds_on == ():
            continue
        before = reader.feeds_on or ()
        name = before[0] if len(before) == 1 else f"into {reader.name}"
        found.setdefault(name, reader.name)
    unknown = [name for name in layers if name not in found]
    if unknown or not found:
        raise ValueError(
            f"no features of {', '.join(unknown) or 'this network'} are known; it has "
            f"features of: {', '.join(found) or 'no layer'}"
        )
    return {name: tap for name, tap in found.items() if not layers or name in layers}


def by_unit(setup: Setup, tap: str, x: jax.Array) -> jax.Array:
    """A layer's input with the units of the layer before it last, [N, ..., C].

    A unit is a channel: a dense layer may read a convolution's channels flattened.

    Args:
      setup: knows the network's layers.
      tap: the layer's name.
      x: its input.
    """
    reader = next(layer for layer in setup.layers if layer.name == tap)
    if is_channels_first(reader):
        return jnp.moveaxis(x, 1, -1)
    width = {layer.name: layer.n_out for layer in setup.layers}
    before = [width[name] for name in reader.feeds_on or ()]
    flattened = x.ndim == 2 and len(set(before)) == 1 and x.shape[1] != before[0]
    if not flattened or x.shape[1] % before[0]:
        return x
    if reader.repeats:
        return x.reshape(len(x), before[0], -1).swapaxes(1, 2)
    return x.reshape(len(x), -1, before[0])
