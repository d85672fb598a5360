"""A method's loss and optimizer as this project's loop makes them.

A loop of one's own may add to the loss, so `jaxcl.transform_loss` takes the form for
beside others, which projects in another place (`Strategy.beside`).
"""

from jaxcl.hooks import hook_in
from jaxcl.objective import loss_parts


def alone(method, optimizer, setup):
    """``((params, state, ctx) -> (value, Output), optax transformation)``."""
    parts = loss_parts(method, setup)

    def loss(params, state, ctx):
        value, (_, out) = parts(params, state, ctx)
        return value, out

    return loss, hook_in(method, optimizer, setup)
