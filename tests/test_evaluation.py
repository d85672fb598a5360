"""Evaluation: the order and the size of its batches."""

import numpy as np
import pytest

from jaxcl import strategy
from jaxcl.data.scenarios import make_stream
from jaxcl.nn import models
from jaxcl.training import protocol
from jaxcl.training.problem import validate


def stored(source, order):
    """The data set with its test examples in another order."""
    return source._replace(test_x=source.test_x[order], test_y=source.test_y[order])


def accuracies(problem, source, norm):
    build = problem(
        model=lambda k: models.MLP((16,), k, norm=norm),
        seeds=(0, 1),
        plan=dict(epochs=4, eval_batch_size=10),
    )
    options = dict(kind="split", scenario="task", num_tasks=3, valid_fraction=0.2)
    stream = make_stream(source, build.seeds, **options)
    *_, last = protocol.run(build._replace(stream=stream))
    return last.accuracy


@pytest.mark.parametrize("norm", ["none", "batch_current"])
def test_how_a_data_set_is_stored_does_not_matter(problem, blobs, norm):
    """Even if data are stored class by class, batches contain both classes."""
    by_class = np.argsort(blobs.test_y, kind="stable")
    mixed = accuracies(problem, blobs, norm)
    sorted_ = accuracies(problem, stored(blobs, by_class), norm)
    if norm == "none":
        np.testing.assert_array_equal(sorted_, mixed)
    else:
        learned = [np.diagonal(a, axis1=1, axis2=2).mean() for a in (mixed, sorted_)]
        assert min(learned) > 0.9, learned


def test_the_order_is_fixed(problem, blobs):
    first = accuracies(problem, blobs, "batch_current")
    np.testing.assert_array_equal(accuracies(problem, blobs, "batch_current"), first)


def test_validation_and_test_batches_have_one_size(problem):
    """For logits that depend on the batch: 20 and 40 examples, in batches of 32."""
    sizes = set()

    def spy(setup):
        def forward(apply_fn, state, aux, *, ctx):
            def apply(net, model_state, x, task, key, train):
                if not train:
                    sizes.add(x.shape[0])
                return apply_fn(net, model_state, x, task, key, train)

            return apply

        return strategy(forward=forward)

    build = problem(
        make_strategy=spy,
        model=lambda k: models.MLP((4,), k, norm="batch_current"),
        plan=dict(epochs=1, eval_batch_size=32),
    )
    validate(build)
    list(protocol.run(build))
    assert sizes == {32}
