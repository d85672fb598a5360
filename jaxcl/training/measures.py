"""What a run can measure of its features: by name, or by a function of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from jaxcl.checks import called, imported, require

# Of outputs; all others are of layers.
OUTPUTS = ("told", "confusion")
NAMES = ("rank", "probes", "multinomial", "cka", "drift", "conflict", *OUTPUTS)
# What these give, which one's own function cannot be called.
QUANTITIES = (
    *("effective_rank", "stable_rank", "energy_rank", "dormant_share"),
    *("probe_ridge", "probe_ncm", "probe_multinomial", "accuracy_told", "confusion"),
    *("cka", "feature_drift", "weight_drift", "effective_rank_by_epoch"),
    *("conflict_gradient", "conflict_step"),
)

Measure = Callable[[jax.Array, jax.Array], jax.Array]
"""``(x [N, ..., C], y int[N]) -> scalar``: a layer's outputs with its C units last, and
the examples' classes, numbered from 0 within their task."""


def own_measures(names: Sequence[str]) -> Mapping[str, Measure]:
    """The functions that are named by an import path, by the name of the function.

    Args:
      names: some of `NAMES`, and "package.module:name".

    Raises:
      ValueError: an unknown name; a path that leads nowhere; a function's name that is
        a quantity's already.
    """
    unknown = [name for name in names if name not in NAMES and ":" not in name]
    require(
        not unknown,
        f"features can measure {', '.join(NAMES)}, or package.module:name; not "
        f"{', '.join(unknown)}",
    )
    found: dict[str, Measure] = {}
    for path in (name for name in names if ":" in name):
        quantity = path.rpartition(":")[2]
        require(
            quantity not in (*QUANTITIES, *found),
            f"features {path!r}: {quantity!r} is measured already, give the function "
            "another name",
        )
        found[quantity] = _checked(path, imported(path, "features"))
    return found


def _checked(path: str, measure: Measure) -> Measure:
    def one(x: jax.Array, y: jax.Array) -> jax.Array:
        value = called(path, measure, x, y)
        shape = list(jnp.shape(value))
        require(not shape, f"features {path!r} has to give a scalar, got {shape}")
        return jnp.asarray(value, jnp.float32)

    return one
