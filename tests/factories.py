"""Factories that do not make a strategy, or one whose hooks have the wrong shape."""

import jax.numpy as jnp

from jaxcl.contract import strategy


def nothing(setup):
    return None


def raises(setup):
    raise KeyError("a factory of somebody else's")


def text(setup):
    return "hook"


def grads(setup):
    return strategy(grads=lambda grads, state, params, **extra: grads)


def updates(setup):
    return strategy(updates=lambda updates, state, params, **extra: (jnp.ones(3), ()))


def loss(setup):
    return strategy(loss=lambda loss_fn, state: lambda params, ctx: jnp.ones(3))


def after_task(setup):
    return strategy(after_task=lambda params, state, **extra: (params, jnp.ones(2)))


def forward(setup):
    def forward(apply_fn, state, aux, *, ctx):
        return lambda *args: jnp.ones(2)

    return strategy(forward=forward)


def report(setup):
    return strategy(report=lambda state: 3.0)


def healthy(setup):
    return strategy()
