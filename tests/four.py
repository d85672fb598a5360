"""The same network four times: in Linen, NNX, Equinox and as a plain function.

Parameters are kept in Linen's layout, ``{layer: {"kernel", "bias"}}``, and converted to
each framework's. Equinox's kernels are [outputs, inputs], and its convolutions have
channels first, so the dense layer after them reads its inputs in another order.
"""

from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxcl
from jaxcl.nn import capture, layers
from jaxcl.nn import equinox as of_equinox
from jaxcl.nn import nnx as of_nnx

SIDE, CHANNELS, WIDTHS, OUTPUTS, TASKS = 6, 4, (12, 10), 6, 3
POOLED = SIDE // 2
FRAMEWORKS = ("linen", "nnx", "equinox", "plain")
MODELS = {
    "mlp": ("dense_0", "dense_1", "head"),
    "cnn": ("conv_0", "conv_1", "dense_0", "head"),
}


def initial(model: str, dtype: Any = np.float32, seed: int = 0) -> dict:
    """Weights in Linen's layout."""
    rng = np.random.default_rng(seed)
    dense = (SIDE * SIDE, *WIDTHS, OUTPUTS)
    shapes = {f"dense_{i}": dense[i : i + 2] for i in range(2)}
    shapes["head"] = dense[2:]
    if model == "cnn":
        shapes = {
            "conv_0": (3, 3, 1, CHANNELS),
            "conv_1": (3, 3, CHANNELS, CHANNELS),
            "dense_0": (POOLED * POOLED * CHANNELS, WIDTHS[1]),
            "head": (WIDTHS[1], OUTPUTS),
        }

    def draw(shape):
        bound = np.prod(shape[:-1]) ** -0.5
        return {
            "kernel": rng.uniform(-2 * bound, 2 * bound, shape).astype(dtype),
            "bias": rng.uniform(-bound, bound, shape[-1:]).astype(dtype),
        }

    return {name: draw(shape) for name, shape in shapes.items()}


class Linen(nn.Module):
    model: str

    @nn.compact
    def __call__(self, x, task, train):
        if self.model == "cnn":
            conv = {"window": (3, 3), "padding": "SAME"}
            h = nn.relu(layers.Conv(CHANNELS, name="conv_0", **conv)(x))
            h = h + nn.relu(layers.Conv(CHANNELS, name="conv_1", **conv)(h))
            h = nn.max_pool(h, (2, 2), (2, 2)).reshape(len(x), -1)
            h = nn.relu(layers.Dense(WIDTHS[1], name="dense_0")(h))
        else:
            h = x.reshape(len(x), -1)
            for i, width in enumerate(WIDTHS):
                h = nn.relu(layers.Dense(width, name=f"dense_{i}")(h))
        return layers.Dense(OUTPUTS, name="head")(h)


class NNX(nnx.Module):
    def __init__(self, model, net, rngs):
        self.model = model
        for name, p in net.items():
            *window, d, n = p["kernel"].shape
            kind = {"dtype": p["kernel"].dtype, "param_dtype": p["kernel"].dtype}
            layer = (
                nnx.Conv(d, n, tuple(window), rngs=rngs, **kind)
                if window
                else nnx.Linear(d, n, rngs=rngs, **kind)
            )
            layer.kernel[...] = jnp.asarray(p["kernel"])
            layer.bias[...] = jnp.asarray(p["bias"])
            setattr(self, name, layer)

    def __call__(self, x):
        if self.model == "cnn":
            h = nnx.relu(self.conv_0(x))
            h = h + nnx.relu(self.conv_1(h))
            h = nnx.max_pool(h, (2, 2), (2, 2)).reshape(len(x), -1)
            h = nnx.relu(self.dense_0(h))
        else:
            h = nnx.relu(self.dense_0(x.reshape(len(x), -1)))
            h = nnx.relu(self.dense_1(h))
        return self.head(h)


class Equinox(eqx.Module):
    """Takes one example [C, H, W]."""

    conv_0: Any
    conv_1: Any
    dense_0: Any
    dense_1: Any
    head: Any
    pool: eqx.nn.MaxPool2d
    act: Any  # a function among the leaves
    nothing: None
    model: str = eqx.field(static=True)

    def __init__(self, model, net):
        self.model, self.act, self.nothing = model, jax.nn.relu, None
        self.pool = eqx.nn.MaxPool2d(2, 2)
        self.conv_0 = self.conv_1 = self.dense_0 = self.dense_1 = self.head = None
        for name, p in turned(net, model).items():
            n, d, *window = p["kernel"].shape
            key = jax.random.key(0)
            layer = (
                eqx.nn.Conv2d(d, n, window, padding=1, key=key)
                if window
                else eqx.nn.Linear(d, n, key=key)
            )
            layer = eqx.tree_at(
                lambda m: (m.weight, m.bias), layer, (p["kernel"], p["bias"])
            )
            setattr(self, name, layer)

    def __call__(self, x):
        if self.model == "cnn":
            h = self.act(self.conv_0(x))
            h = self.pool(h + self.act(self.conv_1(h))).reshape(-1)
            h = self.act(self.dense_0(h))
        else:
            h = self.act(self.dense_1(self.act(self.dense_0(x.reshape(-1)))))
        return self.head(h)


def plain(model):
    def forward(net, x):
        def at(name, h, **options):
            make = jaxcl.nn.conv if name.startswith("conv") else jaxcl.nn.dense
            return make(h, net[name]["kernel"], net[name]["bias"], name=name, **options)

        if model == "cnn":
            h = jax.nn.relu(at("conv_0", x, padding="SAME"))
            h = h + jax.nn.relu(at("conv_1", h, padding="SAME"))
            h = nn.max_pool(h, (2, 2), (2, 2)).reshape(len(x), -1)
            h = jax.nn.relu(at("dense_0", h))
        else:
            h = jax.nn.relu(at("dense_0", x.reshape(len(x), -1)))
            h = jax.nn.relu(at("dense_1", h))
        return at("head", h)

    return forward


def turned(net, model):
    """Linen's layout to Equinox's."""

    def one(name, p):
        kernel = jnp.asarray(p["kernel"])
        if kernel.ndim == 4:
            kernel = kernel.transpose(3, 2, 0, 1)
            return {"kernel": kernel, "bias": jnp.asarray(p["bias"]).reshape(-1, 1, 1)}
        if model == "cnn" and name == "dense_0":
            image = kernel.reshape(POOLED, POOLED, CHANNELS, -1)
            kernel = image.transpose(2, 0, 1, 3).reshape(kernel.shape)
        return {"kernel": kernel.T, "bias": jnp.asarray(p["bias"])}

    return {name: one(name, p) for name, p in net.items()}


def turned_back(net, model):
    """Equinox's layout to Linen's."""

    def one(name, p):
        kernel = p["kernel"]
        if kernel.ndim == 4:
            return {"kernel": kernel.transpose(2, 3, 1, 0), "bias": p["bias"].ravel()}
        kernel = kernel.T
        if model == "cnn" and name == "dense_0":
            image = kernel.reshape(CHANNELS, POOLED, POOLED, -1)
            kernel = image.transpose(1, 2, 0, 3).reshape(kernel.shape)
        return {"kernel": kernel, "bias": p["bias"]}

    return {name: one(name, p) for name, p in net.items()}


class Framework(NamedTuple):
    """One of the four: its setup, and the conversions from and to Linen's layout."""

    setup: jaxcl.Setup
    give: Any  # Linen's layout -> the framework's parameters
    take: Any  # the framework's parameters -> Linen's layout
    inputs: Any  # [B, H, W, C] -> the framework's layout of images
    rows: Any  # layer -> for each row of its kernel as a matrix, the row in Linen's


def framework(name: str, model: str, net: dict, batch: int, **options) -> Framework:
    """One of `FRAMEWORKS`; `options` are for its ``setup_for``."""
    dtype = net["head"]["kernel"].dtype
    example = jax.ShapeDtypeStruct((batch, SIDE, SIDE, 1), dtype)
    of = dict(num_outputs=OUTPUTS, num_tasks=TASKS, scenario="task") | options
    same = (
        lambda net: jax.tree.map(jnp.asarray, net),
        lambda net: net,
        lambda x: x,
        lambda layer: slice(None),
    )
    head = (("head",),)
    if name == "linen":
        setup = jaxcl.setup_for_linen(Linen(model), example, heads=head, **of)
        return Framework(setup, *same)
    if name == "plain":
        return Framework(
            jaxcl.setup_for(plain(model), example, net=net, heads=head, **of), *same
        )
    if name == "nnx":
        whole = NNX(model, net, nnx.Rngs(0))
        return Framework(jaxcl.setup_for_nnx(whole, example, heads=head, **of), *same)
    whole = Equinox(model, net)
    image = jax.ShapeDtypeStruct((batch, 1, SIDE, SIDE), dtype)
    setup = jaxcl.setup_for_equinox(whole, image, heads=head, **of)
    like = of_equinox.split(whole)

    def give(net):
        flat = turned(net, model)
        values = [flat[k][f] for k in sorted(flat) for f in ("kernel", "bias")]
        return jax.tree.unflatten(jax.tree.structure(like), values)

    def take(net):
        found = {k: getattr(net, k) for k in MODELS[model]}
        at = {k: {"kernel": m.weight, "bias": m.bias} for k, m in found.items()}
        return turned_back(at, model)

    def rows(layer):
        kernel = net[layer]["kernel"]
        number = np.arange(kernel[..., 0].size).reshape(*kernel.shape[:-1], 1)
        numbered = {"kernel": number + np.zeros(kernel.shape), "bias": np.zeros(1)}
        of_first_output = turned({layer: numbered}, model)[layer]["kernel"][0]
        return np.asarray(of_first_output, int).ravel()

    return Framework(setup, give, take, lambda x: x.transpose(0, 3, 1, 2), rows)


def start(name: str, model: str, net: dict):
    """The parameters and the model state that a user starts from."""
    if name == "nnx":
        return of_nnx.split(NNX(model, net, nnx.Rngs(0)))
    if name == "linen":
        shape = jax.ShapeDtypeStruct((1, SIDE, SIDE, 1), jnp.float32)
        return capture.init_fn(Linen(model), shape)(jax.random.key(0))
    return of_equinox.split(Equinox(model, net)), {}
