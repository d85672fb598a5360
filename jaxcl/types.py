"""The values that strategies are written with: batches, contexts, setups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

PyTree = Any
State = Any
Padding = str | tuple[tuple[int, int], tuple[int, int]]
Augmentation = Callable[[jax.Array, jax.Array], jax.Array]
"""``(x [B, ...], key) -> x [B, ...]``, a random change of each example."""


class Batch(NamedTuple):
    """Examples of one step; rows that only pad the batch have weight 0."""

    x: jax.Array  # [B, ...] network input, float
    y: jax.Array  # int32[B] target among the K outputs
    task: jax.Array  # int32[B] task each example comes from
    weight: jax.Array  # float32[B] 1 for an example, 0 for padding
    index: jax.Array  # int32[B] position in the task's data; -1: not that input


class Params(NamedTuple):
    """The parameters that the optimizer trains."""

    net: PyTree  # the model's parameters
    aux: PyTree  # what the strategy trains beside it (HAT's embeddings), else {}


class Output(NamedTuple):
    """The result of a forward pass."""

    logits: jax.Array  # float[B, K], not masked
    model_state: PyTree  # e.g. running statistics after this pass
    taps: dict[str, jax.Array]  # layer name -> input of that layer


class Context(NamedTuple):
    """What a hook may know about the step it is called in; arrays only."""

    task: jax.Array  # int32[] task in training, traced and shared by all seeds
    step: jax.Array  # int32[] step since the start of the task
    # None: not told; a method that reads it refuses the context.
    epoch: jax.Array | None  # int32[] of the task, from 0; −1 outside training
    epoch_progress: jax.Array | None  # float32[] (b - 1)/(B - 1) for batch b of B
    epoch_fraction: jax.Array | None  # float32[] share of the epoch's examples seen
    task_progress: jax.Array | None  # float32[] share of the task's steps done
    key: jax.Array  # a typed key of this step's own
    batch: Batch
    model_state: PyTree
    cache: PyTree  # what `before_task` returned
    original: jax.Array | None = None  # the batch's inputs, if x is augmented


class LayerSpec(NamedTuple):
    """One dense or convolutional layer, as `inspection.describe` found it."""

    name: str  # module path, "/"-joined; the key of `Output.taps`
    kind: str  # "dense" or "conv"
    path: tuple[str, ...]  # of the kernel in the params tree
    strides: tuple[int, int]
    padding: Padding  # "VALID", "SAME" or zeros before and after; dense: "VALID"
    window: tuple[int, int]  # (kh, kw); dense: (1, 1)
    d_in: int  # rows of the kernel as a matrix: kh * kw * channels
    n_out: int
    bias: bool
    feeds_on: tuple[str, ...] | None  # layers before; (): the input; None: unknown
    refusal: str  # why methods that treat layers must refuse it, or ""
    positions: int = 1  # rows per example: windows; dense on [B, D]: 1
    reads_input: bool = False  # its input is the network's, at most reshaped
    axis: int = -1  # the kernel's axis over its outputs: -1, or 0: [out, in, ...]
    repeats: bool = False  # reads flattened [C, H, W]: a unit's inputs lie together
    bias_path: tuple[str, ...] | None = None  # None: "bias" beside the kernel
    dtype: str = "float32"  # of its kernel as the network uses it

    @property
    def path_of_bias(self) -> tuple[str, ...]:
        """The bias's path in the params tree."""
        return self.bias_path or (*self.path[:-1], "bias")


class Codec(NamedTuple):
    """How a network input is kept in a memory: ``decode(encode(x)) == x`` on the data.

    An image in uint8 takes a quarter of its normalised float32.
    """

    encode: Callable[[jax.Array], jax.Array]  # float[B, ...] -> any dtype, same shape
    decode: Callable[[jax.Array], jax.Array]  # and back


def same(x: jax.Array) -> jax.Array:
    """Returns its argument: encodes and decodes inputs that are kept as they are."""
    return x


AS_IT_IS = Codec(same, same)


class NormSpec(NamedTuple):
    """One normalisation, as `inspection.describe_norms` found it."""

    name: str  # module path, "/"-joined
    kind: str  # one of `inspection.NORM_KINDS`
    path: tuple[str, ...]  # of its parameters in the params tree
    follows: str | None  # the layer whose output it reads; None: something else's


class Setup(NamedTuple):
    """Everything that is fixed for a whole run; the hooks close over it."""

    apply_fn: ApplyFn
    task_loss: TaskLoss
    layers: tuple[LayerSpec, ...]
    heads: tuple[tuple[str, ...], ...]  # path prefixes of the classifier in the params
    logit_mask: jax.Array  # bool[T, K] outputs in play for each task
    mask_by: str  # "example": row of the example's task; "task": of the current one
    num_tasks: int
    example: jax.ShapeDtypeStruct  # one batch of inputs
    mixes_examples: bool  # whether logits depend on the batch in evaluation
    codec: Codec = AS_IT_IS  # how memories store inputs
    model_state: PyTree = {}  # shapes (`jax.ShapeDtypeStruct`) of running statistics
    norms: tuple[NormSpec, ...] = ()
    axis: int = -1  # of kernels in no layer: their axis over the outputs
    augmentation: Augmentation | None = None  # of training's inputs, drawn ones too
    num_classes: tuple[int, ...] = ()  # of each task; (): as many as it has new outputs


class TaskData(NamedTuple):
    """One task's training examples, readable inside jit."""

    take: Callable[[jax.Array], Batch]  # int32[B] positions in [0, size) -> Batch
    size: jax.Array  # int32[] number of examples
    capacity: int  # static upper bound of size
    # How the members of a chain before this one wrap the network when a task has ended:
    # applied to `Setup.apply_fn`, it gives the network that is evaluated.
    forward: Callable[[ApplyFn], ApplyFn] = lambda apply_fn: apply_fn
    # Static: whether steps see other inputs than `take` gives (augmentation). What is
    # computed from those before the task is then not used.
    changes: bool = False


ApplyFn = Callable[..., Output]
"""(net, model_state, x, task[B], key, train: bool) -> Output"""
TaskLoss = Callable[[jax.Array, Batch, jax.Array], jax.Array]
"""(logits[B, K], batch, current task) -> scalar"""
LossFn = Callable[[Params, Context], tuple[jax.Array, Output]]
"""A scalar to minimise and the forward pass it came from."""
