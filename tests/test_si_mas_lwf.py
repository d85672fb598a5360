"""SI, MAS and LwF compared with float64 transcriptions over three tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference as ref

import jaxcl
from jaxcl.losses import distillation, soft_divergence, squared_error
from jaxcl.strategies.lwf import lwf
from jaxcl.strategies.mas import mas
from jaxcl.strategies.si import si

SCENARIOS = ["task", "domain", "class"]


def task_gradient(setup, net, t, x, y):
    mask = ref.mask_rows(setup, np.full(len(y), t), t)
    return ref.backward(net, x, ref.cross_entropy_dz(ref.logits(net, x)[1], y, mask))


@pytest.mark.parametrize("momentum", [None, 0.6])
def test_si_equals_its_rule_over_three_tasks(momentum):
    c, xi, lr = 0.8, 0.05, 0.4
    with jax.enable_x64(True):
        setup = ref.make_setup()
        net, tasks = ref.make_net(), ref.make_tasks(setup)
        method = si(setup, strength=c, damping=xi)
        got = ref.run(method, setup, net, tasks, optax.sgd(lr, momentum))

        zeros = jax.tree.map(np.zeros_like, net)
        omega, anchor = zeros, net
        for t, (x, y) in enumerate(tasks):
            path, velocity = zeros, zeros
            for i in range(len(x) // ref.BATCH):
                rows = slice(i * ref.BATCH, (i + 1) * ref.BATCH)
                g = task_gradient(setup, net, t, x[rows], y[rows])
                total = jax.tree.map(
                    lambda a, o, p, s: a + 2 * c * o * (p - s), g, omega, net, anchor
                )
                velocity = ref.add(ref.scale(momentum or 0, velocity), total)
                step = ref.scale(-lr, velocity)
                path = jax.tree.map(lambda w, a, d: w - a * d, path, g, step)
                net = ref.add(net, step)
            omega = jax.tree.map(
                lambda o, w, p, s: np.maximum(o + w / ((p - s) ** 2 + xi), 0),
                omega,
                path,
                net,
                anchor,
            )
            anchor = net
            ref.assert_close(got[t][0], net)
            ref.assert_close(got[t][1].importance, omega)
            ref.assert_close(got[t][1].anchor, anchor)
            ref.assert_close(got[t][1].path, zeros)


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_mas_equals_its_rule_over_three_tasks(scenario):
    strength, lr = 0.02, 0.3
    with jax.enable_x64(True):
        setup = ref.make_setup(scenario)
        net, tasks = ref.make_net(), ref.make_tasks(setup)
        method = mas(setup, strength=strength, samples=10_000, chunk=7)
        got = ref.run(method, setup, net, tasks, optax.sgd(lr))
        omega, anchor = jax.tree.map(np.zeros_like, net), net

        def gradient(net, t, i, x, y):
            g = task_gradient(setup, net, t, x, y)
            return jax.tree.map(
                lambda a, o, p, s: a + 2 * strength * o * (p - s),
                g,
                omega,
                net,
                anchor,
            )

        importances = []

        def after_task(net, t, x, y):
            nonlocal omega, anchor
            mask = ref.mask_rows(setup, np.array([t]), t)
            for one in x:
                dz = 2 * ref.logits(net, one[None])[1] * mask
                g = ref.backward(net, one[None], dz)
                omega = ref.add(omega, jax.tree.map(lambda a: np.abs(a) / len(x), g))
            anchor = net
            importances.append(omega)

        want = ref.run_reference(net, tasks, lr, gradient, after_task)
        for t in range(3):
            ref.assert_close(got[t][0], want[t])
            ref.assert_close(got[t][1].importance, importances[t])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_lwf_equals_its_rule_over_three_tasks(scenario):
    strength, tau, lr = 0.6, 2.0, 0.4
    with jax.enable_x64(True):
        setup = ref.make_setup(scenario)
        net, tasks = ref.make_net(), ref.make_tasks(setup)
        got = ref.run(
            lwf(setup, strength=strength, temperature=tau),
            setup,
            net,
            tasks,
            optax.sgd(lr),
        )
        teacher = net

        def gradient(net, t, i, x, y):
            z, old = ref.logits(net, x)[1], ref.logits(teacher, x)[1]
            mask = ref.mask_rows(setup, np.full(len(y), t), t)
            dz = ref.cross_entropy_dz(z, y, mask)
            for earlier in range(t):
                # Class-incremental: each time the earlier classes, among all so far.
                seen = setup.mask_by == "task"
                asked, given = (t, t - 1) if seen else (earlier, earlier)
                groups = np.asarray(setup.logit_mask)
                q = ref.softmax(z / tau, groups[asked])
                p = ref.softmax(old / tau, groups[given])
                dz = dz + strength * tau * (q - p) / len(y)
            return ref.backward(net, x, dz)

        def after_task(net, t, x, y):
            nonlocal teacher
            teacher = net

        want = ref.run_reference(net, tasks, lr, gradient, after_task)
        for (net_got, state), net_want in zip(got, want, strict=True):
            ref.assert_close(net_got, net_want)
            ref.assert_close(state.net, net_want)


@pytest.mark.parametrize(
    "make",
    [
        lambda setup: si(setup, strength=0.0),
        lambda setup: mas(setup, strength=0.0),
        lambda setup: jaxcl.chain(lwf(setup, strength=0.0), si(setup, strength=0.0)),
    ],
)
def test_strength_0_is_fine_tuning(make):
    ref.assert_neutral(make, task=1)


@pytest.mark.parametrize(
    "make",
    [
        lambda setup: si(setup, strength=5.0),
        lambda setup: mas(setup, strength=5.0),
        lambda setup: lwf(setup, strength=5.0),
    ],
)
def test_the_first_task_is_fine_tuning(make):
    ref.assert_neutral(make)


def test_soft_divergence_against_a_plain_sum():
    rng = np.random.default_rng(0)
    z, target = rng.normal(size=(2, 5, 6)) * 3
    mask = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]], bool)
    weight, tau = np.array([1.0, 0.0, 2.0, 1.0, 0.5]), 1.7
    want = 0.0
    for group in mask[:2]:
        p = ref.softmax(target / tau, group)[:, group]
        q = ref.softmax(z / tau, group)[:, group]
        want += tau**2 * (weight * (p * np.log(p / q)).sum(-1)).sum() / weight.sum()
    with jax.enable_x64(True):

        def loss(z, target):
            return soft_divergence(
                z, target, temperature=tau, mask=jnp.asarray(mask), weight=weight
            )

        np.testing.assert_allclose(loss(z, target), want, rtol=1e-12)
        assert loss(z, z) == 0
        g = jax.grad(loss)(z, jnp.asarray(target))
        assert np.isfinite(g).all() and (g[:, 5] == 0).all() and (g[1] == 0).all()


def test_soft_divergence_from_a_target_over_fewer_outputs():
    rng = np.random.default_rng(0)
    z, target = rng.normal(size=(2, 3, 4))
    asked, given = np.array([1, 1, 1, 0], bool), np.array([1, 1, 0, 0], bool)
    p = ref.softmax(target, given)[:, :2]
    q = ref.softmax(z, asked)[:, :2]
    want = (p * np.log(p / q)).sum(-1).mean()
    with jax.enable_x64(True):

        def loss(z):
            return soft_divergence(
                z,
                target,
                temperature=1.0,
                mask=jnp.asarray(asked)[None],
                weight=jnp.ones(3),
                target_mask=jnp.asarray(given)[None],
            )

        np.testing.assert_allclose(loss(z), want, rtol=1e-12)
        got = jax.grad(loss)(jnp.asarray(z))
        full = (ref.softmax(z, asked) - ref.softmax(target, given)) / 3
        np.testing.assert_allclose(got, full, rtol=1e-10, atol=1e-12)


def test_soft_divergence_of_extreme_outputs_is_finite():
    z = jnp.array([[1e30, -1e30, 0.0]])
    one = jnp.ones(1)
    mask = jnp.array([[True, True, False], [False] * 3])

    def loss(z, target):
        return soft_divergence(z, target, temperature=2.0, mask=mask, weight=one)

    assert np.isfinite(jax.grad(loss)(z, z)).all()
    assert np.isfinite(loss(z, z)) and loss(jnp.zeros((1, 3)), z) > 0


def test_distillation_gives_no_gradient_to_the_teacher():
    def loss(teacher):
        bare = distillation(
            lambda w: (jnp.sum(w), w),
            target=teacher,
            strength=2.0,
            divergence=squared_error,
            of=lambda w: w,
        )
        return bare(jnp.ones((1, 2)))[0]

    value, g = jax.value_and_grad(loss)(jnp.zeros((1, 2)))
    assert value == 2 + 2 * 1 and (g == 0).all()


def test_squared_error_without_weight_is_0():
    assert squared_error(jnp.ones((2, 3)), jnp.zeros((2, 3)), jnp.zeros(2)) == 0


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda s: si(s, strength=-1.0), "si: strength must be at least 0, got -1.0"),
        (lambda s: si(s, strength=1.0, damping=0.0), "damping .* got 0.0"),
        (lambda s: mas(s, strength=float("nan")), "mas: strength .* got nan"),
        (
            lambda s: mas(s, strength=1.0, samples=0),
            "mas: samples must be at least 1, got 0",
        ),
        (lambda s: lwf(s, strength=-2.0), "lwf: strength .* got -2.0"),
        (lambda s: lwf(s, temperature=0.0), "temperature .* got 0.0"),
        (
            lambda s: distillation(
                lambda w: w, target=0, divergence=squared_error, strength=-1.0
            ),
            "strength must be at least 0, got -1.0",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make(ref.make_setup())
