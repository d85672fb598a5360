"""The example store: what it holds, how examples are drawn, and that none is lost."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcl
from jaxcl.checks import bytes_of
from jaxcl.data.scenarios import make_stream
from jaxcl.data.sources import load
from jaxcl.ops import memory, sampling
from jaxcl.types import Batch, Codec, same

PLAIN = Codec(same, same)


def make_batch(first, n, weight=None):
    """Examples first … first + n − 1, recognisable by every field."""
    number = first + jnp.arange(n)
    return Batch(
        x=jnp.stack([number, -number], 1).astype(jnp.float32),
        y=(number % 7).astype(jnp.int32),
        task=(number // 10).astype(jnp.int32),
        weight=jnp.ones(n) if weight is None else jnp.asarray(weight, jnp.float32),
        index=number,
    )


def make_setup(num_tasks=3, outputs=3, scenario="domain"):
    return jaxcl.setup_for(
        lambda net, x: x,
        jax.ShapeDtypeStruct((4, 2), jnp.float32),
        num_outputs=outputs,
        num_tasks=num_tasks,
        heads=(),
        scenario=scenario,
    )


def held(store):
    """The numbers of the examples in a memory; checks all their fields."""
    number = np.asarray(store.x[: int(store.size), 0]).astype(int)
    np.testing.assert_array_equal(store.x[: int(store.size), 1], -number)
    np.testing.assert_array_equal(store.y[: int(store.size)], number % 7)
    np.testing.assert_array_equal(store.task[: int(store.size)], number // 10)
    return number.tolist()


@pytest.mark.parametrize(
    "mean, std",
    [
        ((0.0,), (1.0,)),
        ((0.1307,), (0.3081,)),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.9,), (0.001,)),
    ],
)
def test_codec_is_exact_on_every_pixel_value(mean, std):
    source = load("digits")
    stream = make_stream(source, (0,), kind="split", scenario="task", num_tasks=5)
    codec = stream._replace(mean=mean, std=std, scale=255.0).codec
    pixels = jnp.broadcast_to(
        jnp.arange(256, dtype=jnp.uint8)[:, None], (256, len(mean))
    )
    x = jax.jit(codec.decode)(pixels)
    stored = jax.jit(codec.encode)(x)
    assert x.dtype == jnp.float32 and stored.dtype == jnp.uint8
    np.testing.assert_array_equal(stored, pixels)
    np.testing.assert_array_equal(jax.jit(codec.decode)(stored), x)


@pytest.mark.parametrize("kind", ["split", "permuted"])
def test_codec_gives_back_what_the_stream_gave(kind):
    scenario = "task" if kind == "split" else "domain"
    stream = make_stream(
        load("digits"), (3,), kind=kind, scenario=scenario, num_tasks=2
    )
    mine = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), stream.per_seed)
    base = jax.tree.map(jnp.asarray, stream.base)

    @jax.jit
    def both(task):
        data = stream.view(base, mine, "train", task)
        x = data.take(jnp.arange(50)).x
        return x, stream.codec.decode(stream.codec.encode(x))

    x, back = both(1)
    np.testing.assert_array_equal(x, back)


def test_append_keeps_what_comes_first():
    store = memory.empty(make_setup(), 5)
    assert held(store) == []
    store = memory.append(store, make_batch(0, 3, [1, 0, 1]), PLAIN)
    assert held(store) == [0, 2]
    store = memory.append(store, make_batch(20, 4), PLAIN)
    assert held(store) == [0, 2, 20, 21, 22]
    store = memory.append(store, make_batch(40, 4), PLAIN)
    assert held(store) == [0, 2, 20, 21, 22] and int(store.seen) == 10


def test_append_with_a_batch_larger_than_the_memory():
    store = memory.append(memory.empty(make_setup(), 2), make_batch(0, 9), PLAIN)
    assert held(store) == [0, 1]


def test_reservoir_equals_one_example_after_another():
    """Algorithm R in a plain loop, over batches with padding and clashing draws."""
    capacity, size = 4, 9
    store, slots, seen, clashes = memory.empty(make_setup(), capacity), {}, 0, 0
    for i in range(12):
        weight = np.random.default_rng(i).random(size) < 0.8
        batch, key = make_batch(i * size, size, weight), jax.random.key(i)
        number = np.maximum(seen + np.cumsum(weight) - 1, 0)
        draws = jax.random.randint(key, (size,), 0, jnp.asarray(number) + 1)
        taken = set()
        for j in np.flatnonzero(weight):
            slot = seen if seen < capacity else int(draws[j])
            if slot < capacity:
                clashes += slot in taken
                taken.add(slot)
                slots[slot] = i * size + j
            seen += 1
        store = jax.jit(memory.reservoir_add, static_argnums=3)(
            store, key, batch, PLAIN
        )
        assert held(store) == [slots[s] for s in sorted(slots)]
        assert int(store.seen) == seen
    assert clashes > 0


def test_reservoir_holds_everyone_equally_often():
    """Over 2,000 runs every example is held with frequency n/N, |z| ≤ 5."""
    capacity, size, batches, runs = 8, 7, 9, 2000
    weight = np.ones((batches, size))
    weight[4, 5:] = 0
    total = int(weight.sum())
    setup = make_setup()

    def one(key):
        def body(store, i):
            batch = make_batch(i * size, size)._replace(weight=jnp.asarray(weight)[i])
            key_i = jax.random.fold_in(key, i)
            return memory.reservoir_add(store, key_i, batch, PLAIN), None

        return jax.lax.scan(body, memory.empty(setup, capacity), jnp.arange(batches))[0]

    stores = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), runs))
    assert (stores.size == capacity).all() and (stores.seen == total).all()
    number = np.asarray(stores.x[:, :, 0]).astype(int)
    for row in number:
        assert len(set(row)) == capacity
    count = np.bincount(number.ravel(), minlength=batches * size).reshape(weight.shape)
    assert (count[weight == 0] == 0).all()
    p = capacity / total
    z = (count[weight > 0] - runs * p) / np.sqrt(runs * p * (1 - p))
    assert np.abs(z).max() <= 5
    assert 0.5 < z.std() < 1.5


def test_reservoir_smaller_than_a_batch_and_larger_than_the_data():
    for capacity, expected in ((1, 1), (100, 6)):
        store = memory.empty(make_setup(), capacity)
        store = memory.reservoir_add(store, jax.random.key(0), make_batch(0, 6), PLAIN)
        assert int(store.size) == expected
        assert set(held(store)) <= set(range(6))
        assert len(set(held(store))) == expected


def test_map_vmap_and_jit_agree():
    setup = make_setup()

    def one(seed):
        def body(i, store):
            key = jax.random.fold_in(jax.random.key(seed), i)
            return memory.reservoir_add(store, key, make_batch(i * 5, 5), PLAIN)

        store = jax.lax.fori_loop(0, 6, body, memory.empty(setup, 4))
        return store, memory.sample(store, jax.random.key(seed), 3, setup).batch

    seeds = jnp.arange(3)
    looped = [jax.jit(one)(s) for s in seeds]
    looped = jax.tree.map(lambda *leaves: jnp.stack(leaves), *looped)
    for result in (jax.vmap(one)(seeds), jax.lax.map(one, seeds)):
        chex.assert_trees_all_equal(result, looped)


def test_sample_draws_every_filled_slot_alike_and_no_other():
    setup = make_setup()
    store = memory.append(memory.empty(setup, 50), make_batch(0, 8), PLAIN)
    n = 8000
    drawn = memory.sample(store, jax.random.key(1), n, setup).batch
    assert (drawn.weight == 1).all() and drawn.x.shape == (n, 2)
    np.testing.assert_array_equal(drawn.y, drawn.x[:, 0] % 7)
    count = np.bincount(np.asarray(drawn.x[:, 0]).astype(int), minlength=8)
    z = (count - n / 8) / np.sqrt(n / 8 * 7 / 8)
    assert len(count) == 8 and np.abs(z).max() <= 5


def test_sample_of_an_empty_memory_has_no_weight():
    setup = make_setup()
    drawn = memory.sample(memory.empty(setup, 5), jax.random.key(1), 3, setup)
    assert (drawn.batch.weight == 0).all() and jnp.isfinite(drawn.batch.x).all()


def test_replay_of_an_empty_memory_repeats_the_batch():
    setup = make_setup()
    none = memory.sample(memory.empty(setup, 5), jax.random.key(1), 6, setup).batch
    both = memory.with_replay(make_batch(10, 4), none)
    np.testing.assert_array_equal(both.x[:, 0], [10, 11, 12, 13] * 2 + [10, 11])
    np.testing.assert_array_equal(both.weight, [1] * 4 + [0] * 6)
    full = memory.append(memory.empty(setup, 5), make_batch(30, 1), PLAIN)
    past = memory.sample(full, jax.random.key(1), 2, setup).batch
    both = memory.with_replay(make_batch(10, 4), past)
    np.testing.assert_array_equal(both.x[:, 0], [10, 11, 12, 13, 30, 30])
    np.testing.assert_array_equal(both.task, [1, 1, 1, 1, 3, 3])
    assert (both.weight == 1).all()


def choose(y, capacity=None, **how):
    n = len(y)
    data = jaxcl.array_data(jnp.zeros((capacity or n, 2)), np.resize(y, capacity or n))
    data = data._replace(size=jnp.asarray(n))
    position, keep = jax.jit(lambda key: sampling.choose(data, key, **how))(
        jax.random.key(2)
    )
    assert sorted(np.asarray(position)[:n]) == list(range(n)) or capacity
    kept = np.asarray(position)[np.asarray(keep)]
    assert np.asarray(keep)[: len(kept)].all()  # those picked come first
    assert len(set(kept)) == len(kept) and (kept < n).all()
    return kept


def test_choose_per_class():
    y = np.array([0] * 10 + [2] * 3 + [5] * 20)  # classes 1, 3 and 4 are never seen
    kept = choose(y, per_task=None, per_class=4)
    assert np.bincount(y[kept], minlength=6).tolist() == [4, 0, 3, 0, 0, 4]
    kept = choose(y, capacity=50, per_task=None, per_class=4)
    assert np.bincount(y[kept], minlength=6).tolist() == [4, 0, 3, 0, 0, 4]


def test_choose_per_task():
    y = np.array([0] * 10 + [2] * 3)
    assert len(choose(y, per_task=5, per_class=None)) == 5
    assert len(choose(y, per_task=99, per_class=None)) == 13
    assert len(choose(y, capacity=40, per_task=99, per_class=None)) == 13


def test_choice_is_uniform():
    data = jaxcl.array_data(jnp.zeros((12, 2)), jnp.arange(12) % 2)

    def one(key):
        position, keep = sampling.choose(data, key, per_task=None, per_class=2)
        return jnp.zeros(12).at[position].add(keep)

    runs = 2000
    count = jax.vmap(one)(jax.random.split(jax.random.key(3), runs)).sum(0)
    z = (count - runs / 3) / np.sqrt(runs * 2 / 9)
    assert np.abs(z).max() <= 5


def test_bytes_and_extra():
    setup = make_setup()
    logits = jax.ShapeDtypeStruct((3,), jnp.float32)
    store = memory.empty(setup, 10, logits)
    assert bytes_of(store) == 10 * (2 * 4 + 4 + 4 + 3 * 4) + 8
    shape = jax.eval_shape(lambda: memory.empty(setup, 10, logits))
    assert bytes_of(shape) == bytes_of(store)
    batch = make_batch(0, 4)
    extra = jnp.arange(12.0).reshape(4, 3)
    store = memory.append(store, batch, PLAIN, extra)
    drawn = memory.sample(store, jax.random.key(0), 20, setup)
    number = np.asarray(drawn.batch.x[:, 0]).astype(int)
    np.testing.assert_array_equal(drawn.extra, np.asarray(extra)[number])


def test_images_are_kept_flat_in_uint8():
    stream = make_stream(
        load("digits"), (0,), kind="split", scenario="task", num_tasks=5
    )
    setup = make_setup()._replace(
        example=jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32), codec=stream.codec
    )
    store = memory.empty(setup, 7)
    assert store.x.shape == (7, 64) and store.x.dtype == jnp.uint8
    assert bytes_of(store) == 7 * (64 + 8) + 8
    drawn = memory.sample(store, jax.random.key(0), 3, setup)
    assert drawn.batch.x.shape == (3, 8, 8, 1)


def test_no_capacity_is_refused():
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        memory.empty(make_setup(), 0)
