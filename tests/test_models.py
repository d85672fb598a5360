"""Layers compared with `lax` and by hand; the networks' shapes and wiring."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.nn import capture, inspection, layers
from jaxcl.nn.efficientnet import EfficientNetLite0
from jaxcl.nn.models import MLP, AlexNet, ResNet18
from jaxcl.ops import convolution, pooling, strips


def lax_conv(x, kernel, strides, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 1)])
@pytest.mark.parametrize("window", [(3, 3), (2, 2), (4, 1), (1, 1)])
def test_convolution_and_both_gradients(window, strides, padding):
    key = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(key[0], (2, 9, 8, 3))
    kernel = jax.random.normal(key[1], (*window, 3, 5))

    def scalar(conv):
        def f(x, kernel):
            y = conv(x, kernel, strides, padding)
            return jnp.sum(y * jax.random.normal(key[2], y.shape)), y

        return jax.value_and_grad(f, (0, 1), has_aux=True)(x, kernel)

    (_, y), grads = scalar(convolution.convolve)
    (_, expected), expected_grads = scalar(lax_conv)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("strides", [(1, 1), (2, 3), (1, 2)])
@pytest.mark.parametrize("window", [(3, 3), (2, 5), (1, 2)])
def test_strips_of_several_windows_give_the_same_convolution(window, strides):
    key = jax.random.split(jax.random.key(0), 3)
    width = 11 * strides[1] + window[1]  # of which twelve columns come
    x = jax.random.normal(key[0], (2, 9, width, 3))
    kernel = jax.random.normal(key[1], (*window, 3, 5))
    y, pull = jax.vjp(lambda k: lax_conv(x, k, strides, "VALID"), kernel)
    dy = jax.random.normal(key[2], y.shape)

    @jax.jit
    def of_strips(x, kernel, dy):
        return [
            (
                strips.convolve(x, kernel, strides, q),
                strips.kernel_gradient(x, dy, kernel.shape, strides, q),
            )
            for q in (2, 3, 6)
        ]

    for ours, dk in of_strips(x, kernel, dy):
        np.testing.assert_allclose(ours, y, atol=1e-5)
        np.testing.assert_allclose(dk, pull(dy)[0], atol=2e-5)


def test_strips_are_taken_where_channels_are_few():
    assert strips.columns((4, 4, 3, 16), 30) == 6
    assert strips.columns((4, 4, 3, 64), 30) == 2
    assert strips.columns((4, 4, 3, 16), 28) == 4  # they fill the width
    assert strips.columns((4, 4, 3, 16), 29) == 1  # a quarter AlexNet's first layer
    assert strips.columns((3, 3, 20, 20), 32) == 2  # a reduced ResNet-18
    assert strips.columns((3, 3, 3, 16), 4) == 4  # no more columns than there are
    for kernel in ((1, 1, 3, 16), (3, 3, 16, 32), (3, 3, 64, 64)):
        assert strips.columns(kernel, 30) == 1


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 3)])
@pytest.mark.parametrize("window", [(3, 3), (4, 2), (1, 1)])
def test_input_gradient_is_the_sum_over_windows(window, strides, padding):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 8, 3)).astype(np.float32)
    kernel = rng.normal(size=(*window, 3, 5)).astype(np.float32)
    shape = jax.eval_shape(
        lambda *a: convolution.convolve(*a, strides, padding), x, kernel
    ).shape
    dy = rng.normal(size=shape).astype(np.float32)
    # By hand: each window passes its gradient to the pixels that it read.
    (top, bottom), (left, right) = (
        convolution.pads(x.shape[a + 1], window[a], strides[a], padding) for a in (0, 1)
    )
    dx = np.zeros((2, 9 + top + bottom, 8 + left + right, 3))
    for p, q in np.ndindex(*shape[1:3]):
        rows = slice(p * strides[0], p * strides[0] + window[0])
        columns = slice(q * strides[1], q * strides[1] + window[1])
        exact = np.einsum("bo,ijco->bijc", dy[:, p, q], kernel.astype(np.float64))
        dx[:, rows, columns] += exact
    dx = dx[:, top : top + 9, left : left + 8]
    ours = convolution.input_gradient(x, kernel, dy, strides, padding)
    np.testing.assert_allclose(ours, dx, atol=1e-5)


def test_first_convolution_computes_no_input_gradient():
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))

    def loss(kernel, x):
        return convolution.convolve(x, kernel).sum()

    def products(argnums):
        step = jax.jit(jax.grad(loss, argnums)).lower(kernel, x).compile()
        return step.cost_analysis()["flops"]

    # dK takes as many multiplications as y; dx would take the same number again.
    assert products((0,)) < 0.75 * products((0, 1))


def test_bias_gradient_is_the_sum_over_positions():
    rng = np.random.default_rng(0)
    y, dy = rng.normal(size=(2, 4, 30, 30, 7)).astype(np.float32)
    bias = rng.normal(size=7).astype(np.float32)
    out, pull = jax.vjp(convolution.add_bias, y, bias)
    np.testing.assert_array_equal(out, y + bias)
    ours, db = pull(jnp.asarray(dy))
    np.testing.assert_array_equal(ours, dy)
    np.testing.assert_allclose(db, dy.astype(np.float64).sum((0, 1, 2)), rtol=1e-5)


def test_patches_times_kernel_is_the_convolution_and_channel_first_is_not():
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    expected = lax_conv(x, kernel, (1, 1), "VALID")
    ours = convolution.patches(x, (3, 3)) @ kernel.reshape(-1, 4)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    channel_first = jax.lax.conv_general_dilated_patches(
        x, (3, 3), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    wrong = channel_first @ kernel.reshape(-1, 4)
    assert float(jnp.abs(wrong - expected).max()) > 1


def test_pooling_commutes_with_relu_and_dropout():
    x = jax.random.normal(jax.random.key(0), (4, 7, 7, 3))
    kept = jax.random.bernoulli(jax.random.key(1), 0.6, x.shape)
    late = nn.relu(pooling.max_pool(jnp.where(kept, x, 0)))
    early = pooling.max_pool(jnp.where(kept, nn.relu(x), 0))
    np.testing.assert_array_equal(late, early)
    np.testing.assert_array_equal(
        pooling.max_pool(x), nn.max_pool(x, (2, 2), (2, 2), "VALID")
    )


@pytest.mark.parametrize("size, side", [(2, 7), (2, 8), (3, 8)])
def test_pooling_gradient_goes_to_the_winner(size, side):
    rng = np.random.default_rng(0)
    # With few distinct values many windows have their maximum twice; the first wins.
    x = rng.integers(0, 4, (3, side, side, 5)).astype(np.float32)
    out = side // size
    dy = rng.normal(size=(3, out, out, 5)).astype(np.float32)
    expected = np.zeros(x.shape)
    for b, p, q, c in np.ndindex(*dy.shape):
        window = x[b, p * size : (p + 1) * size, q * size : (q + 1) * size, c]
        i, j = np.unravel_index(window.argmax(), window.shape)
        expected[b, p * size + i, q * size + j, c] = dy[b, p, q, c]
    pull = jax.jit(lambda x, dy: jax.vjp(lambda v: pooling.max_pool(v, size), x)[1](dy))
    np.testing.assert_array_equal(pull(x, dy)[0], expected)


def test_pooling_passes_a_nan_on_and_refuses_windows_it_cannot_index():
    for place in np.ndindex(2, 2):
        x = np.zeros((1, 2, 2, 1), np.float32)
        x[0][place] = np.nan
        assert jnp.isnan(pooling.max_pool(x)).all()
    with pytest.raises(ValueError, match=r"size must be in \[1, 11\], got 12"):
        pooling.max_pool(jnp.zeros((1, 24, 24, 1)), 12)


@pytest.mark.parametrize("shape", [(41, 101, 17), (70_001,), (3, 5), (1,), (0,)])
def test_random_bytes_are_all_bytes_of_the_words(shape):
    key = jax.random.key(3)
    ours = np.asarray(layers.random_bytes(key, shape))
    n = ours.size
    assert ours.shape == shape and ours.dtype == np.uint8
    words = np.asarray(jax.random.bits(key, (-(-n // 4),), jnp.uint32))
    expected = [(words >> shift) & 255 for shift in (0, 8, 16, 24)]
    np.testing.assert_array_equal(ours.ravel(), np.stack(expected, 1).ravel()[:n])
    if n < 50_000:
        return
    # The 256 values are equally frequent, and no byte predicts the next.
    count = np.bincount(ours.ravel(), minlength=256)
    chi = ((count - n / 256) ** 2 / (n / 256)).sum()
    assert abs(chi - 255) < 5 * (2 * 255) ** 0.5
    flat = ours.ravel() - 127.5
    for lag in (1, 2, 3, 4):
        assert abs(np.corrcoef(flat[:-lag], flat[lag:])[0, 1]) < 5 / n**0.5


def test_dropout_under_vmap_and_scan_is_that_of_each_key():
    layer = layers.Dropout(0.4)
    keys, x = jax.random.split(jax.random.key(0), 3), jnp.ones((3, 7, 5, 3))

    def drop(key, x):
        return layer.apply({}, x, True, rngs={"dropout": key})

    each = np.stack([drop(k, v) for k, v in zip(keys, x, strict=True)])
    np.testing.assert_array_equal(jax.jit(jax.vmap(drop))(keys, x), each)
    _, scanned = jax.lax.scan(lambda c, kx: (c, drop(*kx)), 0, (keys, x))
    np.testing.assert_array_equal(scanned, each)
    assert len({e.tobytes() for e in each}) == 3


def test_dropout_drops_its_share_and_keeps_the_mean():
    layer = layers.Dropout(0.3)
    x = jnp.ones((400, 500))
    y = layer.apply({}, x, True, rngs={"dropout": jax.random.key(0)})
    share = float((y == 0).mean())
    exact = round(0.3 * 256) / 256
    assert abs(share - exact) < 5 * (exact * (1 - exact) / y.size) ** 0.5
    np.testing.assert_allclose(float(y.max()), 1 / (1 - exact), rtol=1e-6)
    assert abs(float(y.mean()) - 1) < 0.005
    np.testing.assert_array_equal(layer.apply({}, x, False), x)


@pytest.mark.parametrize("rate", [0.9981, 0.9999])
def test_dropout_near_1_keeps_one_in_256(rate):
    # Rounded to 256/256, it used to divide by zero.
    x = jnp.ones((400, 500))
    y = layers.Dropout(rate).apply({}, x, True, rngs={"dropout": jax.random.key(0)})
    share = float((y != 0).mean())
    assert abs(share - 1 / 256) < 5 * (1 / 256 / y.size) ** 0.5
    assert float(y.max()) == 256


@pytest.mark.parametrize("rate", [1.0, 2.0, -0.1])
def test_a_dropout_rate_outside_its_range_is_refused(rate):
    for make in (layers.Dropout, lambda r: EfficientNetLite0(10, dropout=r)):
        with pytest.raises(ValueError, match=r"(rate|dropout) must lie in \[0, 1\)"):
            make(rate)


def test_initial_weights_fill_their_range():
    model = MLP((400,), 10)
    net = model.init(jax.random.key(0), jnp.ones((2, 100)), None, False)["params"]
    for layer, fan_in in (("hidden_0", 100), ("head", 400)):
        bound = fan_in**-0.5
        for leaf in net[layer].values():
            assert float(jnp.abs(leaf).max()) <= bound
        kernel = net[layer]["kernel"]
        np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.03)


def test_normal_initial_weights():
    def build(start):
        model = MLP((300,), 10, start=start)
        return model.init(jax.random.key(0), jnp.ones((2, 400)), None, False)["params"]

    first = build("normal")["hidden_0"]
    np.testing.assert_allclose(first["bias"], 0.1)
    assert 0.19 < float(jnp.abs(first["kernel"]).max()) <= 0.2
    # A normal distribution cut off at two deviations keeps .88 of its deviation.
    np.testing.assert_allclose(first["kernel"].std(), 0.088, atol=5e-4)
    with pytest.raises(ValueError, match="start must be one of uniform, normal"):
        build("zero")


@pytest.mark.parametrize("norm", layers.NORMS)
def test_alexnet_has_the_papers_shapes(norm):
    model = AlexNet(100, norm=norm, use_bias=False, num_tasks=2)
    example = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    layers = inspection.describe(model, example)
    assert [(s.name, s.d_in, s.n_out) for s in layers] == [
        ("conv_0", 4 * 4 * 3, 64),
        ("conv_1", 3 * 3 * 64, 128),
        ("conv_2", 2 * 2 * 128, 256),
        ("dense_0", 1024, 2048),
        ("dense_1", 2048, 2048),
        ("head", 2048, 100),
    ]


@pytest.mark.parametrize("norm", layers.NORMS)
def test_norms_train_and_evaluate(norm):
    model = AlexNet(4, width=0.1, norm=norm, num_tasks=2)
    example = jax.ShapeDtypeStruct((6, 32, 32, 3), jnp.float32)
    net, state = capture.init_fn(model, example)(jax.random.key(0))
    f = capture.apply_fn(model)
    x = 3 + 2 * jax.random.normal(jax.random.key(1), example.shape)
    task = jnp.zeros(6, jnp.int32)
    out = f(net, state, x, task, jax.random.key(2), True)
    assert jnp.isfinite(out.logits).all()
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(state), jax.tree.leaves(out.model_state), strict=True
        )
    ]
    assert (norm in ("batch", "batch_per_task")) == bool(moved) and all(moved)
    # Whether an example's logits depend on the others in its batch, as declared.
    whole = f(net, state, x, task, jax.random.key(2), False).logits
    half = f(net, state, x[:3], task[:3], jax.random.key(2), False).logits
    same = bool(jnp.allclose(whole[:3], half, atol=1e-4))
    assert same != model.mixes_examples


@pytest.mark.parametrize("norm", [n for n in layers.NORMS if n != "none"])
def test_norms_of_what_is_far_from_zero(norm):
    rng = np.random.default_rng(0)
    x = (1000 + rng.normal(size=(16, 6, 6, 8))).astype(np.float32)
    layer, task = layers.Norm(norm, 1), jnp.zeros(16, jnp.int32)
    variables = layer.init(jax.random.key(0), x, task, True)
    mutable = [k for k in variables if k != "params"]
    y, _ = layer.apply(variables, x, task, True, mutable=mutable)
    exact = x.astype(np.float64)
    # GroupNorm of eight groups of one channel; LayerNorm over the channels alone.
    axes = {"group": (1, 2), "layer": (3,)}.get(norm, (0, 1, 2))
    centred = exact - exact.mean(axes, keepdims=True)
    expected = centred / np.sqrt(exact.var(axes, keepdims=True))
    np.testing.assert_allclose(y, expected, atol=2e-3)


def test_unknown_norm():
    with pytest.raises(ValueError, match="norm must be one of none, batch"):
        inspection.describe(
            AlexNet(4, norm="bacth"), jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
        )


def test_reduced_resnet_has_its_layers_and_wiring():
    model = ResNet18(100)
    example = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    layers = {s.name: s for s in inspection.describe(model, example)}
    convs = [s for s in layers.values() if s.kind == "conv"]
    assert len(convs) == 1 + 16 + 3  # stem, two per block, three projections
    assert layers["head"].d_in == 160 and layers["block_3_1_b"].n_out == 160
    assert layers["block_1_0_b"].feeds_on == ("block_1_0_a",)
    assert layers["block_1_1_a"].feeds_on == ("block_1_0_skip", "block_1_0_b")
    net, state = capture.init_fn(model, example)(jax.random.key(0))
    count = sum(a.size for a in jax.tree.leaves(net))
    assert count == 1_109_240  # the published reduced ResNet-18 with 100 outputs
