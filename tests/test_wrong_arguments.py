"""Wrong arguments of the library's functions: one line that names value and rule."""

from functools import partial

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxcl
from jaxcl import features
from jaxcl.strategies import finetune
from jaxcl.testing import small_problem
from jaxcl.training.problem import validate

X, Y = jax.random.normal(jax.random.key(0), (8, 6)), jnp.arange(8) % 2
NET = {"head": {"kernel": jnp.full((6, 4), 0.1), "bias": jnp.zeros(4)}}


def network(net, x):
    head = net["head"]
    return jaxcl.nn.dense(x, head["kernel"], head["bias"], name="head")


def setup_of(scenario="task", forward=network, **given):
    options = dict(num_outputs=4, num_tasks=2, heads=(("head",),), net=NET)
    return jaxcl.setup_for(forward, X, scenario=scenario, **(options | given))


def refused(call, *said):
    """The call ends in a ValueError of one line that says all this."""
    with pytest.raises(ValueError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and all(part in text for part in said), text


def table(**cases):
    return pytest.mark.parametrize("call, said", cases.values(), ids=cases.keys())


def context(x=X, y=Y, **given):
    return lambda: jaxcl.context(x, y, **({"task": 0} | given))


@table(
    above=(context(epoch_progress=7.0), ["epoch_progress must", "[0, 1]", "7.0"]),
    nan=(context(epoch_fraction=np.nan), ["epoch_fraction must", "nan"]),
    below=(context(task_progress=-1.0), ["task_progress must", "-1.0"]),
    fraction=(context(task=0.5), ["task must be an integer", "0.5"]),
    text=(context(task="1"), ["task must be an integer", "'1'"]),
    negative=(context(task=-1), ["task must lie in [0", "-1"]),
    step=(context(step=-1), ["step must be at least 0", "-1"]),
    seed=(context(seed="a"), ["seed must be an integer", "'a'"]),
    epoch=(context(epoch=0.5), ["epoch must be an integer", "0.5"]),
    index=(context(index=jnp.arange(5)), ["index must be int[8]", "int32[5]"]),
    float_index=(context(index=jnp.zeros(8)), ["index must be int[8]", "float32"]),
    pairs=(context(index=jnp.zeros((8, 1), int)), ["int[8]", "[8, 1]"]),
    empty=(context(X[:0], Y[:0]), ["non-zero number of rows", "0 and 0"]),
    scalar=(context(jnp.zeros(()), Y), ["number of rows", "got none and 8"]),
    no_rows=(lambda: jaxcl.array_data(0.0, Y), ["number of rows", "got none and 8"]),
    words=(context(y=["a"] * 8), ["targets y are numbers of classes"]),
    no_task=(lambda: jaxcl.array_data(X, Y, 0.5), ["task must be an integer", "0.5"]),
)
def test_a_context(call, said):
    refused(call, *said)


def test_targets_may_be_a_list():
    assert jaxcl.context(X, [0, 1] * 4, task=0).batch.y.tolist() == [0, 1] * 4
    assert jaxcl.array_data(X, [0, 1] * 4).take(jnp.arange(2)).y.tolist() == [0, 1]


@pytest.mark.parametrize(
    "scenario, task, y", [("task", 1, 0), ("task", 0, 2), ("class", 0, 3)]
)
def test_targets_that_are_not_in_play(scenario, task, y):
    """Their loss was infinite."""
    setup, y = setup_of(scenario), jnp.full(8, y)
    said = ["targets y must be outputs of task", f"got {y[0]}"]
    for make in (jaxcl.context, jaxcl.array_data):
        refused(partial(make, X, y, task=task, setup=setup), *said)
    loss = jaxcl.transform_loss(finetune(setup), setup)
    params = jaxcl.init_params(finetune(setup), jax.random.key(0), NET)
    ctx = jaxcl.context(X, y, task=task)
    refused(lambda: loss(params, (), ctx), *said)
    padding = ctx._replace(batch=ctx.batch._replace(weight=jnp.zeros(8)))
    assert loss(params, (), padding)[0] == 0
    jax.jit(loss)(params, (), ctx)  # tracers pass


@pytest.mark.parametrize("of, task", [(0, 1), (1, 0), (0, -1), (9, 9), (0, 0.5)])
def test_a_task_begins_and_ends_with_its_own_data(of, task):
    """SLDA absorbed nothing, A-GEM stored the examples under task 0."""
    setup = setup_of()
    method = finetune(setup)
    params = jaxcl.init_params(method, jax.random.key(0), NET)
    state = jaxcl.transform_optimizer(method, optax.sgd(0.1), setup).init(params)
    data = jaxcl.array_data(X, Y, of)
    for hook in (jaxcl.before_task, jaxcl.after_task):
        refused(
            partial(hook, method, params, state, data, task=task, setup=setup),
            "task must",
            f"got {task}",
        )
    jax.jit(lambda t: jaxcl.before_task(method, params, state, data, task=t))(1)


IMAGES, KERNEL = jnp.ones((2, 5, 5, 1)), jnp.ones((3, 3, 1, 2))


def conv(**given):
    return lambda: jaxcl.nn.conv(IMAGES, KERNEL, name="a", **given)


@table(
    lower=(conv(padding="valid"), ["padding must be one of SAME, VALID", "'valid'"]),
    title=(conv(padding="Same"), ["padding must", "'Same'"]),
    unknown=(conv(padding="NOSUCH"), ["padding must", "'NOSUCH'"]),
    one=(conv(padding=1), ["padding must", "got 1"]),
    below=(conv(padding=((-1, 0), (0, 0))), ["padding must", "-1"]),
    zero=(conv(strides=(0, 0)), ["strides must be at least 1", "(0, 0)"]),
    number=(conv(strides=2), ["strides must be (an integer", "got 2"]),
    negative=(conv(strides=(-1, 1)), ["strides must be at least 1", "-1"]),
    own=(
        lambda: jaxcl.ops.convolution.convolve(IMAGES, KERNEL, (1, 1), "same"),
        ["padding must be one of SAME, VALID", "'same'"],
    ),
)
def test_a_convolution(call, said):
    refused(call, *said)


Z = jnp.ones((8, 4))


def fitted(make, **given):
    data = dict(x=X, y=Y, num_classes=2)
    if make in (features.ridge_probe, features.multinomial_probe):
        data |= dict(x_held=X, y_held=Y)
    return lambda: make(**(data | given))


PROBES = (features.ridge_probe, features.multinomial_probe, features.ncm, features.lda)


@pytest.mark.parametrize("make", PROBES, ids=lambda make: make.__name__)
def test_a_probes_classes(make):
    refused(fitted(make, y=Y + 1), "targets y must lie in [0, 2)", "got 2")
    refused(fitted(make, y=Y - 1), "targets y must lie in [0, 2)", "got -1")
    refused(fitted(make, y=Y + 0.5), "targets y are numbers of classes", "float32[8]")
    refused(fitted(make, y=jax.nn.one_hot(Y, 2)), "float32[8, 2]")
    refused(fitted(make, num_classes=0), "num_classes must be at least 1, got 0")
    refused(fitted(make, num_classes="2"), "num_classes must be an integer, got '2'")
    lists = fitted(make, x=X.tolist(), y=Y.tolist())()
    jax.tree.map(np.testing.assert_array_equal, lists, fitted(make)())


PROBE = features.Probe(jnp.ones((6, 2)), jnp.zeros(2), jnp.zeros(()))


@table(
    held=(fitted(features.ridge_probe, y_held=Y + 7), ["lie in [0, 2)", "got 7"]),
    infinite=(
        fitted(features.ridge_probe, strengths=(np.inf,)),
        ["strengths must be finite", "inf"],
    ),
    none=(fitted(features.ridge_probe, strengths=()), ["strengths must", "()"]),
    tolerance=(
        fitted(features.multinomial_probe, tolerance=np.nan),
        ["tolerance must be finite", "nan"],
    ),
    steps=(fitted(features.multinomial_probe, max_steps=1.5), ["max_steps", "1.5"]),
    shrinkage=(fitted(features.lda, shrinkage=np.nan), ["shrinkage must", "nan"]),
    one=(lambda: features.accuracy(PROBE, X, Y[:1]), ["same examples", "8 and 1"]),
    column=(lambda: features.accuracy(PROBE, X, Y[:, None]), ["int[B]", "[8, 1]"]),
)
def test_a_probe(call, said):
    refused(call, *said)


def soft(**given):
    data = dict(logits=Z, target=Z, temperature=2.0, weight=jnp.ones(8))
    data |= dict(mask=jnp.ones((1, 4), bool))
    return lambda: jaxcl.losses.soft_divergence(**(data | given))


def square(target=Z, weight=None):
    return lambda: jaxcl.losses.squared_error(Z, target, weight)


def pulled(**given):
    data = dict(anchor=NET, importance=NET, strength=1.0)
    loss = jaxcl.losses.quadratic_penalty(lambda net: jnp.zeros(()), **(data | given))
    return lambda: loss(NET)


SMALL = {"head": {"kernel": jnp.ones((6, 4)), "bias": jnp.zeros(1)}}


def sparse(used):
    return lambda: jaxcl.losses.gate_sparsity(
        lambda e: jnp.zeros(()), gates=lambda e: [e], used=[used], strength=1.0
    )(jnp.ones(3))


@table(
    negative=(soft(temperature=-2.0), ["temperature must be greater than 0", "-2.0"]),
    zero=(soft(temperature=0), ["temperature must be greater than 0", "got 0"]),
    nan=(soft(temperature=np.nan), ["temperature must be finite", "nan"]),
    weight=(soft(weight=jnp.ones(1)), ["weight must have the shapes", "[1]", "[8]"]),
    soft_target=(soft(target=Z[:1]), ["target must have the shapes", "[1, 4]"]),
    rows=(square(weight=jnp.ones((8, 1))), ["weight must have the shapes", "[8, 1]"]),
    column=(square(Z[:, :1]), ["target must have the shapes", "[8, 1]", "[8, 4]"]),
    row=(square(Z[:1]), ["target must have the shapes", "[1, 4]"]),
    vector=(square(Z[0]), ["target must have the shapes", "[4]"]),
    anchor=(pulled(anchor=SMALL), ["anchor must have the shapes", "[1]", "head/bias"]),
    tree=(pulled(importance={}), ["importance must be a tree like", "head/bias"]),
    used=(sparse(jnp.array([0.0, 2.0, 1.0])), ["used must lie in [0, 1]", "2.0"]),
    used_nan=(sparse(jnp.array([0.0, jnp.nan, 1.0])), ["used must lie", "nan"]),
    gates=(sparse(jnp.zeros(2)), ["used must have the shapes of the gates", "[2]"]),
)
def test_a_loss(call, said):
    refused(call, *said)


PLANE = features.plane_through({"w": jnp.zeros(3)}, {"w": jnp.ones(3)}, {"w": X[0, :3]})
A, B = {"w": jnp.ones((2, 3))}, {"w": jnp.ones((3, 2))}
MAPS = jnp.arange(9.0).reshape(1, 3, 3)


def embedded(s=1.0, params=A):
    tx = jaxcl.transforms.compensate(9.0)
    return lambda: tx.update(A, tx.init(A), params, s=s)


@table(
    cosine=(lambda: features.cosine(A, B), ["[3, 2]", "[2, 3]", "'w'"]),
    keys=(lambda: features.cosine(A, {"v": 1}), ["b must be a tree like a", "v, w"]),
    kinds=(lambda: features.cosine([X], (X,)), ["b must be a tree like a"]),
    drift=(lambda: features.weight_drift(A, B), ["after must have the shapes"]),
    line=(lambda: features.loss_along_line(jnp.sum, A, {"w": 1.0}), ["b must have"]),
    points=(lambda: features.loss_along_line(jnp.sum, A, A, "3"), ["points", "'3'"]),
    plane=(lambda: features.plane_through(A, A, {"w": 1.0}), ["c must have the shape"]),
    place=(lambda: features.place_in(PLANE, A), ["weights must have the shapes"]),
    slope=(embedded(0.0), ["s must be greater than 0", "0.0"]),
    unlike=(embedded(params=B), ["updates must have the shapes of the embeddings"]),
    scores=(lambda: features.input_gradient(lambda x: x, X), ["one number", "[8, 6]"]),
    score=(lambda: features.input_gradient(jnp.sum, X), ["one number per image", "[]"]),
    window=(
        lambda: features.occlusion(jnp.sum, IMAGES, window=1.5),
        ["window must be an integer", "1.5"],
    ),
    stride=(
        lambda: features.occlusion(jnp.sum, IMAGES, window=1, stride=1.5),
        ["stride must be an integer", "1.5"],
    ),
    share=(lambda: features.energy_rank(X, "a"), ["share must be a number", "'a'"]),
    threshold=(lambda: features.dormant_share(X, np.nan), ["threshold must", "nan"]),
    gain=(lambda: features.lost_share([[0.5], [0.9]], "a"), ["least_gain", "'a'"]),
    text=(lambda: features.effective_rank("a"), ["an array is needed, got a str"]),
)
def test_a_measure(call, said):
    refused(call, *said)


def test_what_is_not_known_is_nan():
    assert np.isnan(features.rank_correlation(MAPS, MAPS.at[0, 1, 1].set(jnp.nan)))
    place = features.place_in(PLANE, {"w": jnp.full(3, jnp.nan)})
    assert np.isnan(place.outside)
    assert np.isnan(jaxcl.statistics.sd_ratio([1, 2, np.inf], [1, 2, 4])).all()


def test_lists_are_measured_as_arrays_are():
    x = X.tolist()
    for measure in (
        features.ranks,
        features.dormant_share,
        lambda x: features.linear_cka(x, x),
        lambda x: features.feature_drift(x, x),
        lambda x: features.rank_correlation(x, x),
        lambda x: features.barrier(x),
    ):
        jax.tree.map(np.testing.assert_array_equal, measure(x), measure(X))


def made(forward=network, **given):
    return lambda: setup_of(forward=forward, **given)


def raises(error):
    def forward(net, x):
        raise error

    return forward


class Own(nn.Module):
    """A Linen model that raises."""

    error: Exception

    @nn.compact
    def __call__(self, x):
        nn.Dense(4, name="head")(x)
        raise self.error


class OwnNNX(nnx.Module):
    def __init__(self, error):
        self.head, self.error = nnx.Linear(6, 4, rngs=nnx.Rngs(0)), error

    def __call__(self, x):
        raise self.error


class OwnEquinox(eqx.Module):
    head: eqx.nn.Linear
    error: Exception = eqx.field(static=True)

    def __call__(self, x):
        raise self.error


def four(make, model, **given):
    options = dict(num_outputs=4, num_tasks=2, heads=(("head",),))
    return lambda: make(model, X, **(options | given))


ERRORS = (
    RuntimeError("it broke"),
    KeyError("it broke"),
    AttributeError("it broke"),
    NotImplementedError("it broke"),
    IndexError("it\nbroke"),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_own_model_that_raises(error):
    said, broke = type(error).__name__, "broke"
    refused(made(raises(error)), "forward fails on", said, broke)
    refused(four(jaxcl.setup_for_linen, Own(error)), "Own", said, broke)
    refused(four(jaxcl.setup_for_nnx, OwnNNX(error)), "OwnNNX", said, broke)
    head = eqx.nn.Linear(6, 4, key=jax.random.key(0))
    refused(four(jaxcl.setup_for_equinox, OwnEquinox(head, error)), "OwnEq", said)


MLP = nn.Dense(4, name="head")
EMPTY = eqx.nn.Sequential(
    [eqx.nn.Linear(*sizes, key=jax.random.key(0)) for sizes in ((6, 0), (0, 4))]
)


@table(
    tasks=(made(num_tasks="2"), ["num_tasks must be an integer", "'2'"]),
    half=(made(num_tasks=2.5), ["num_tasks must be an integer", "2.5"]),
    none=(made(num_tasks=None), ["num_tasks must be an integer", "None"]),
    outputs=(made(num_outputs="4"), ["num_outputs must be an integer", "'4'"]),
    no_outputs=(made(num_outputs=0, net=None), ["num_outputs must be at least 2"]),
    per_task=(made(classes_per_task=3), ["classes_per_task must be", "got 3"]),
    halves=(made(classes_per_task=(1.5, 2.5)), ["classes_per_task must be an integer"]),
    heads=(made(heads=None), ["heads must be", "None"]),
    number=(made(heads=3), ["heads must be", "got 3"]),
    flat=(made(heads=("head",)), ["heads must be", "('head',)"]),
    axis=(made(axis=1), ["axis must be -1 or 0, got 1"]),
    no_example=(
        lambda: jaxcl.setup_for(
            network, None, num_outputs=4, num_tasks=2, heads=(("head",),)
        ),
        ["example must be a batch of inputs", "None"],
    ),
    listed=(
        lambda: jaxcl.setup_for(
            network, [[1.0]], num_outputs=4, num_tasks=2, heads=(("head",),), net=NET
        ),
        ["example must be a batch of inputs", "[[1.0]]"],
    ),
    complex_=(
        made(lambda net, x: network(net, x) + 1j),
        ["logits that are floats", "complex64"],
    ),
    integers=(
        made(lambda net, x: network(net, x).astype(int)),
        ["logits that are floats", "int32"],
    ),
    nnx_class=(
        four(jaxcl.setup_for_nnx, OwnNNX),
        ["must be a built flax Module"],
    ),
    nnx_linen=(four(jaxcl.setup_for_nnx, MLP), ["must be a built flax Module"]),
    linen_class=(
        four(jaxcl.setup_for_linen, nn.Dense),
        ["must be a built flax Module"],
    ),
    equinox=(four(jaxcl.setup_for_equinox, MLP), ["must be a built equinox Module"]),
    width_0=(
        four(jaxcl.setup_for_equinox, EMPTY, heads=(("layers", 1),)),
        ["'layers/0' must have at least 1 output"],
    ),
)
def test_a_setup(call, said):
    refused(call, *said)


def test_vectors_are_no_images():
    said = ["images must be [B, H, W, C]", "[8, 6]"]
    refused(lambda: jaxcl.ops.convolution.convolve(X, KERNEL), *said)
    refused(lambda: jaxcl.ops.pooling.max_pool(X), *said)
    model = jaxcl.nn.layers.Conv(4, (3, 3))
    refused(four(jaxcl.setup_for_linen, model), "Conv, inputs [6]", *said)


METHOD, SETUP = jaxcl.strategy(), setup_of()


def own_optimizer(optimizer, method=METHOD):
    return lambda: jaxcl.transform_optimizer(method, optimizer, SETUP)


@table(
    none=(own_optimizer(None), ["optimizer must be a built optax", "None"]),
    text=(own_optimizer("sgd"), ["optimizer must be a built optax", "'sgd'"]),
    factory=(own_optimizer(optax.sgd), ["optimizer must be", "function"]),
    method=(own_optimizer(optax.sgd(0.1), finetune), ["strategy must be", "finetune"]),
    params=(
        lambda: jaxcl.init_params(finetune, jax.random.key(0), NET),
        ["strategy must be a built jaxcl Strategy", "finetune"],
    ),
    number=(lambda: jaxcl.chain(3), ["every member of a chain must be", "got 3"]),
    listed=(lambda: jaxcl.chain([METHOD]), ["every member of a chain", "a list"]),
    second=(lambda: jaxcl.chain(METHOD, None), ["every member of a chain", "None"]),
    hook=(lambda: jaxcl.strategy(loss=3), ["hook loss must be a function", "got 3"]),
)
def test_what_is_no_method_or_optimizer(call, said):
    refused(call, *said)


def test_logits_of_another_kind():
    whole = setup_of(forward=lambda net, x: network(net, x).astype(int), net=None)
    loss = jaxcl.transform_loss(METHOD, whole)
    params = jaxcl.init_params(METHOD, jax.random.key(0), NET)
    refused(lambda: loss(params, (), jaxcl.context(X, Y, task=0)), "floats, not int32")


def test_inputs_of_another_width_are_told():
    loss = jaxcl.transform_loss(METHOD, SETUP)
    params = jaxcl.init_params(METHOD, jax.random.key(0), NET)
    ctx = jaxcl.context(X[:, :5], Y, task=0)
    said = "inputs x must be [B, 6]", "got [8, 5]"
    refused(lambda: loss(params, (), ctx), *said)
    state = jaxcl.transform_optimizer(METHOD, optax.sgd(0.1), SETUP).init(params)
    predict = partial(jaxcl.predict, METHOD, SETUP, params, state, task=0)
    refused(lambda: predict(X[:, :5]), *said)


@pytest.mark.parametrize("where", ["forward", "after_task", "all"])
def test_a_method_without_answers_has_failed(where, finish):
    """Its seeds were "ok", with an accuracy of class 0."""

    def forward(apply_fn, state, aux, *, ctx):
        def apply(net, model_state, x, task, key, train):
            out = apply_fn(net, model_state, x, task, key, train)
            wrong = (ctx.task == 1) & (not train)
            return out._replace(logits=jnp.where(wrong, jnp.nan, out.logits))

        return apply

    def after_task(params, state, *, data, model_state, task, key):
        last = jnp.where(task == 1, jnp.nan, 1.0)
        return params._replace(net=jax.tree.map(lambda w: w * last, params.net)), state

    hooks = {"forward": forward, "after_task": after_task}
    own = hooks if where == "all" else {where: hooks[where]}
    problem = small_problem(
        lambda setup: jaxcl.strategy(**own), seeds=(0, 1), plan={"epochs": 1}
    )
    last = finish(problem)
    assert last.status == ("failed: task 2, epoch 1",) * 2
    assert np.isfinite(last.accuracy[:, 0]).all()
    assert np.isnan(last.accuracy[:, 1:]).all()


THREE = jnp.zeros(3)


@table(
    penalty=(
        {"penalty": lambda params, state, *, task: THREE},
        ["a penalty hook has to give a scalar", "[3]"],
    ),
    validation=(
        {"validation": lambda params, state, *, task: THREE},
        ["a validation hook has to give a scalar", "[3]"],
    ),
    report=(
        {"report": lambda state: {"size": {"layer": THREE}}},
        ["a report hook has to give scalars", "[3]", "'size' of 'layer'"],
    ),
)
def test_a_hook_of_another_shape(call, said, finish):
    problem = small_problem(lambda setup: jaxcl.strategy(**call), seeds=(0,))
    refused(lambda: finish(problem), *said)


@table(
    nan=({"rates": (np.nan,)}, ["rates must be finite", "nan"]),
    negative=({"rates": (-1.0,)}, ["rates must be at least 0", "-1.0"]),
    more=({"seeds": (0, 7)}, ["seeds must be as many as the stream's, 1", "(0, 7)"]),
)
def test_a_problem(call, said):
    refused(lambda: validate(small_problem(seeds=(0,))._replace(**call)), *said)


DEEP = {
    name: {"kernel": jnp.full((rows, columns), 0.1)}
    for name, rows, columns in (("first", 6, 4), ("second", 4, 5), ("head", 5, 4))
}


def deep(net, x):
    for name in ("first", "second", "head"):
        x = jnp.tanh(jaxcl.nn.dense(x, net[name]["kernel"], name=name))
    return x


@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
@pytest.mark.parametrize(
    "heads, said",
    [
        ((("first",),), ["layer 'second' reads first"]),
        ((("second",),), ["layer 'head' reads second"]),
        ((("first",), ("head",)), ["layer 'second' reads first"]),
        (((),), ["heads: '' matches no parameter"]),
    ],
)
def test_heads_that_are_no_classifier(scenario, heads, said):
    refused(made(deep, net=DEEP, heads=heads, scenario=scenario), *said)


def test_a_head_without_the_outputs():
    def apart(net, x):  # its wiring cannot be followed
        h = jax.lax.stop_gradient(jnp.sort(jaxcl.nn.dense(x, net["a"], name="a"), 0))
        return jaxcl.nn.dense(h, net["b"], name="b")

    net = {"a": jnp.ones((6, 5)), "b": jnp.ones((5, 4))}
    refused(made(apart, net=net, heads=(("a",),), scenario="domain"), "heads must name")


def test_classifiers_of_several_layers_stay():
    both = setup_of(forward=deep, net=DEEP, heads=(("second",), ("head",)))
    assert both.heads == (("second",), ("head",))
    nested = {"body": DEEP["first"], "top": {"a": DEEP["second"], "b": DEEP["head"]}}

    def forward(net, x):
        flat = {
            "first": net["body"],
            "second": net["top"]["a"],
            "head": net["top"]["b"],
        }
        return deep(flat, x)

    assert setup_of(forward=forward, net=nested, heads=(("top",),)).heads == (("top",),)
    alone = setup_of(forward=lambda w, x: x @ w, net=jnp.ones((6, 4)), heads=((),))
    assert alone.heads == ((),)
