"""EfficientNet-Lite0, from scratch or with its ImageNet weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcl.nn import pretrained
from jaxcl.nn.layers import Checked, Conv, Dense, Depthwise, Dropout
from jaxcl.ops.trees import leaf_names
from jaxcl.schema import Count, OneOf, Part

# For each stage: blocks, window, stride of the first, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, FEATURES = 32, 1280
PRETRAINED = ("none", "features", "all")
STATISTICS = ("batch", "stored")
IMAGENET = 1000


class EfficientNetLite0(Checked):
    """EfficientNet-Lite0: 4,652,008 parameters with ImageNet's 1,000 classes.

    conv 32@3×3 stride 2; sixteen inverted residual blocks: 1×1 to six times the
    channels, depthwise, 1×1 back, with the input added if shapes agree; conv 1280@1×1;
    mean over positions → dropout; head. BatchNorm (ε 1e-3) after every convolution,
    ReLU6 after all but a block's last. Padding is TensorFlow's SAME. Its ImageNet
    weights expect inputs (p − 127)/128 for pixels p, so mean 127/255 and std 128/255.

    Attributes:
      num_outputs: K.
      pretrained: "none"; "features", ImageNet's weights except the head's; "all", with
        the head too, for K = 1000. They come from the extra ``jaxcl[pretrained]``.
      statistics: of BatchNorm in training: "batch", which moves the stored ones, or
        "stored", which stay unchanged.
      dropout: the rate before the head.

    Source: Tan and Le, EfficientNet, ICML 2019, https://arxiv.org/abs/1905.11946; Lite:
    no squeeze-and-excitation, ReLU6 for swish, stem and last convolution unscaled.
    """

    num_outputs: Count
    pretrained: Annotated[str, OneOf(PRETRAINED)] = "none"
    statistics: Annotated[str, OneOf(STATISTICS)] = "batch"
    dropout: Part = 0.2

    @property
    def wiring(self) -> dict[str, tuple[str, ...]]:
        """Which layers feed each layer; () is the input."""
        wiring: dict[str, tuple[str, ...]] = {"stem": ()}
        trunk: tuple[str, ...] = ("stem",)
        for name, (_, _, stride, expansion, before, channels) in BLOCKS.items():
            inner = trunk
            if expansion > 1:
                wiring[f"{name}_expand"] = trunk
                inner = (f"{name}_expand",)
            wiring[f"{name}_depthwise"] = inner
            wiring[f"{name}_project"] = (f"{name}_depthwise",)
            adds = stride == 1 and before == channels
            trunk = (*(trunk if adds else ()), f"{name}_project")
        return wiring | {"top": trunk, "head": ("top",)}

    @nn.nowrap
    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """As for any module; pretrained weights replace the random ones."""
        variables = super().init(rngs, *args, **kwargs)
        if self.pretrained == "none":
            return variables
        given = pretrained.efficientnet_lite0()
        if self.pretrained == "features":
            given = {path: v for path, v in given.items() if path[1] != "head"}
        return _laid_over(variables, given)

    @nn.compact
    def __call__(self, x: jax.Array, task: jax.Array, train: bool) -> jax.Array:
        self._check(x)
        averaged = not train or self.statistics == "stored"

        def norm(y: jax.Array, name: str) -> jax.Array:
            return nn.BatchNorm(
                use_running_average=averaged,
                momentum=0.99,
                epsilon=1e-3,
                use_fast_variance=False,
                name=f"{name}_norm",
            )(y)

        def conv(y: jax.Array, channels: int, name: str, window=1, stride=1):
            shape = ((window, window), (stride, stride), "SAME")
            made = Conv(channels, *shape, use_bias=False, name=name)
            return norm(made(y), name)

        x = jax.nn.relu6(conv(x, STEM, "stem", 3, 2))
        for name, (window, _, stride, expansion, before, channels) in BLOCKS.items():
            y = x
            if expansion > 1:
                y = jax.nn.relu6(conv(y, expansion * before, f"{name}_expand"))
            inner = f"{name}_depthwise"
            y = norm(Depthwise(window, stride, name=inner)(y), inner)
            y = conv(jax.nn.relu6(y), channels, f"{name}_project")
            x = x + y if stride == 1 and before == channels else y
        x = jax.nn.relu6(conv(x, FEATURES, "top"))
        x = Dropout(self.dropout)(x.mean((1, 2)), train)
        return Dense(self.num_outputs, name="head")(x)

    def _check(self, x: jax.Array) -> None:
        if self.pretrained == "all" and self.num_outputs != IMAGENET:
            raise ValueError(
                f"pretrained='all' has ImageNet's {IMAGENET} outputs, the tasks have "
                f"{self.num_outputs}: use pretrained='features'"
            )
        if x.ndim != 4 or (self.pretrained != "none" and x.shape[-1] != 3):
            raise ValueError(
                "efficientnet_lite0 reads images [B, H, W, C], pretrained of three "
                f"channels, got shape {x.shape}"
            )


def _blocks() -> dict[str, tuple[int, ...]]:
    """Name -> window, number, stride, expansion, channels before and after."""
    found, before = {}, STEM
    for count, window, first, expansion, channels in STAGES:
        for i in range(count):
            stride = first if i == 0 else 1
            block = (window, len(found), stride, expansion, before, channels)
            found[f"block_{len(found)}"] = block
            before = channels
    return found


BLOCKS = _blocks()


def _laid_over(variables: Any, given: Mapping[tuple[str, ...], Any]) -> Any:
    """Replaces some leaves of the variables, by path; all of ``given`` must fit."""
    left = dict(given)

    def leaf(path: Any, own: jax.Array) -> jax.Array:
        new = left.pop(leaf_names(path), None)
        if new is None:
            return own
        if new.shape != own.shape:
            raise ValueError(f"{path}: {new.shape} is given, {own.shape} wanted")
        return jnp.asarray(new, own.dtype)

    made = jax.tree_util.tree_map_with_path(leaf, variables)
    if left:
        raise ValueError(f"the network has no {sorted(left)[0]}")
    return made
