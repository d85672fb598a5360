"""Networks as a user would write them, one per framework, for command lines."""

import equinox as eqx
import flax.linen as nn
import jax
from flax import nnx


class LinenNet(nn.Module):
    num_outputs: int
    width: int = 12

    @nn.compact
    def __call__(self, x, task, train):
        x = nn.relu(nn.Conv(3, (3, 3))(x))
        x = nn.relu(nn.Dense(self.width)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_outputs, name="head")(x)


class LargeWindow(nn.Module):
    num_outputs: int

    @nn.compact
    def __call__(self, x, task, train):
        x = nn.Conv(3, (9, 9), padding="VALID")(x)
        return nn.Dense(self.num_outputs, name="head")(x.reshape(x.shape[0], -1))


class NNXNet(nnx.Module):
    def __init__(self, num_outputs, input_shape, width=12, *, rngs):
        height, breadth, channels = input_shape
        self.conv = nnx.Conv(channels, 3, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.dense = nnx.Linear(height * breadth * 3, width, rngs=rngs)
        self.head = nnx.Linear(width, num_outputs, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.relu(self.dense(x.reshape(x.shape[0], -1)))
        return self.head(self.drop(x))


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    layers: list
    head: eqx.nn.Linear

    def __init__(self, num_outputs, input_shape, width=12, *, key):
        a, b, c = jax.random.split(key, 3)
        height, breadth, channels = input_shape
        self.conv = eqx.nn.Conv2d(channels, 3, 3, padding=1, key=a)
        self.layers = [jax.nn.relu, eqx.nn.Linear(height * breadth * 3, width, key=b)]
        self.head = eqx.nn.Linear(width, num_outputs, key=c)

    def __call__(self, x):
        activate, dense = self.layers
        x = activate(dense(activate(self.conv(x)).ravel()))
        return self.head(x)


class NoOutputs(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, task, train):
        return nn.Dense(self.width, name="head")(x)
