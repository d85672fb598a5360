"""Seeds as a mesh axis: one pure function of one seed, run over all devices.

Seeds are sharded over the devices of a one-axis mesh. Inside a shard they run side by
side (`jax.vmap`, on accelerators) or one after the other (`jax.lax.map`, on a CPU,
where a core per shard and small matrices in cache beat a batched loop).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import random
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcl.ops.trees import is_key
from jaxcl.types import PyTree

MODES = ("auto", "map", "vmap")


class SeedMesh:
    """Where seeds live and how functions run over them.

    Host code, not traced. Attributes: ``num_seeds``, ``padded`` (seeds with the padding
    that an even split needs), ``mode`` ("map" or "vmap"), ``traces`` (how often each
    function was traced).
    """

    def __init__(
        self,
        num_seeds: int,
        mode: str = "auto",
        devices: Sequence[Any] | None = None,
    ):
        """Distributes `num_seeds` seeds over devices.

        Args:
          num_seeds: S ≥ 1.
          mode: "map", "vmap", or "auto" for the one that suits the backend.
          devices: by default all, including those of other hosts.

        Raises:
          ValueError: no seed, or an unknown mode.
        """
        if num_seeds < 1:
            raise ValueError(f"num_seeds must be at least 1, got {num_seeds}")
        if mode not in MODES:
            raise ValueError(
                f"seed_mode must be one of {', '.join(MODES)}, got {mode!r}"
            )
        devices = list(jax.devices() if devices is None else devices)
        if jax.process_count() == 1:
            devices = devices[:num_seeds]  # every host must keep a part of the work
        if mode == "auto":
            mode = "map" if devices[0].platform == "cpu" else "vmap"
        self.num_seeds = num_seeds
        self.padded = -(-num_seeds // len(devices)) * len(devices)
        self.mode = mode
        self.traces: Counter[str] = Counter()
        self.mesh = Mesh(np.array(devices), ("seeds",))

    @property
    def real(self) -> jax.Array:
        """bool[S padded], False for padding."""
        return self._place(
            np.arange(self.padded) < self.num_seeds, PartitionSpec("seeds")
        )

    def any_host(self, flag: bool) -> bool:
        """Whether the flag is set on any host, so that all hosts do the same."""
        if jax.process_count() == 1:
            return flag
        return bool(multihost_utils.process_allgather(np.array(flag)).any())

    def spread(self, tree: PyTree) -> PyTree:
        """Copies host arrays [S, ...] to the devices, padded with the last seed's."""

        def pad(leaf):
            whole = _plain(leaf)
            extra = self.padded - self.num_seeds
            whole = np.concatenate([whole, np.repeat(whole[-1:], extra, axis=0)])
            return _like(leaf, whole)

        return self._place(jax.tree.map(pad, tree), PartitionSpec("seeds"))

    def share(self, tree: PyTree) -> PyTree:
        """Copies host arrays to every device, the same for all seeds."""
        return self._place(tree, PartitionSpec())

    def _place(self, tree: PyTree, spec: PartitionSpec) -> PyTree:
        sharding = NamedSharding(self.mesh, spec)

        def place(leaf):
            whole = _plain(leaf)
            placed = jax.make_array_from_callback(
                whole.shape, sharding, lambda index: whole[index]
            )
            return _like(leaf, placed)

        return jax.tree.map(place, tree)

    def gather(self, tree: PyTree) -> PyTree:
        """Copies device arrays to numpy [S, ...], on every host; keys stay keys."""
        plain = jax.tree.map(lambda a: random.key_data(a) if is_key(a) else a, tree)
        if jax.process_count() > 1:
            plain = multihost_utils.process_allgather(plain, tiled=True)

        def own(leaf, whole):
            return _like(leaf, np.asarray(whole)[: self.num_seeds])

        return jax.tree.map(own, tree, plain)

    def over_seeds(
        self, fn: Callable[..., Any], name: str, donate: bool = False
    ) -> Callable[..., Any]:
        """Compiles a function of one seed into a function of all seeds.

        Args:
          fn: ``(state, mine, shared) -> result`` of one seed.
          name: the name under which its traces are counted.
          donate: whether ``state``'s buffers may be reused for the result.

        Returns:
          ``(state [S, ...], mine [S, ...], shared) -> result [S, ...]``, jitted.
        """

        def shard(state, mine, shared):
            def one(pair):
                return jax.tree.map(_strong, fn(*pair, shared))

            if self.mode == "map":
                return jax.lax.map(one, (state, mine))
            return jax.vmap(one)((state, mine))

        spread, shared = PartitionSpec("seeds"), PartitionSpec()
        sharded = jax.shard_map(
            shard,
            mesh=self.mesh,
            in_specs=(spread, spread, shared),
            out_specs=spread,
            check_vma=False,  # custom backward passes do not carry the annotation
        )

        def counted(*args):
            self.traces[name] += 1
            return sharded(*args)

        counted.__name__ = name
        return jax.jit(counted, donate_argnums=(0,) if donate else ())


def _plain(leaf) -> np.ndarray:
    """An array on this host; a typed key's numbers."""
    return np.asarray(random.key_data(leaf) if is_key(leaf) else leaf)


def _like(leaf, array):
    """The array, as keys of the leaf's kind if that is one."""
    kind = random.key_impl(leaf) if is_key(leaf) else None
    return array if kind is None else random.wrap_key_data(array, impl=kind)


def _strong(leaf: jax.Array) -> jax.Array:
    """Drops JAX's weak type: a result used as an argument must not cause a retrace."""
    return jax.lax.convert_element_type(leaf, leaf.dtype)
