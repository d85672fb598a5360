"""Which layers of a network treat each example by itself."""

from __future__ import annotations

import jax

from jaxcl.nn.treatment import Treatment, under
from jaxcl.types import ApplyFn


def outputs_by_example(
    apply_fn: ApplyFn, net, model_state, x, task, key
) -> dict[str, jax.ShapeDtypeStruct]:
    """The outputs, in evaluation, of the layers that treat each example by itself.

    These are the layers that a capture sees once, and whose input and output have the
    examples, and nothing else, along their first axis. Two sizes of a batch tell that
    axis from another one that happens to be as long.

    Args:
      apply_fn: an adapter's, wrapped or not.
      net: its parameters, or their shapes; likewise for the other arguments.
      model_state: running statistics.
      x: [B, ...] inputs.
      task: int32[B].
      key: a typed key.

    Returns:
      Shape and dtype by layer name.
    """

    def seen(extra: int):
        treatment = Treatment({}, {}, {}, {})

        def run(net, model_state, x, task, key):
            args = (net, model_state, x, task, key, False)
            return under(treatment, apply_fn, *args).taps

        def longer(a):
            return jax.ShapeDtypeStruct((a.shape[0] + extra, *a.shape[1:]), a.dtype)

        taps = jax.eval_shape(run, net, model_state, longer(x), longer(task), key)
        once = {name: y[0] for name, y in treatment.met.items() if len(y) == 1}
        return {name: (taps[name], y) for name, y in once.items() if name in taps}

    def leads(a, b) -> bool:
        return a.shape[:1] == x.shape[:1] and b.shape == (x.shape[0] + 1, *a.shape[1:])

    here, longer = seen(0), seen(1)
    return {
        name: both[1]
        for name, both in here.items()
        if name in longer and all(map(leads, both, longer[name]))
    }
