"""The bench: the divisors of its times, and the timing of a task's end."""

import jax
import numpy as np
import pytest

from experiments.runs import timers
from experiments.runs.cases import CASES, End
from jaxcl.strategies import METHODS


@pytest.mark.parametrize("name", CASES)
def test_a_tasks_end_reads_as_many_examples_as_its_time_is_divided_by(name):
    case = CASES[name]
    for end in case.ends.values():
        assert end.settings["samples"] == end.examples <= case.batch * case.steps


def test_every_method_that_takes_steps_of_its_own_is_timed():
    timed = {row for case in CASES.values() for row in case.methods}
    own = ("constraint", "division", "memory")
    rows = {row for row, of in METHODS.items() if of.family in own}
    assert timed >= rows | {"bp", "ol"}


def test_the_time_of_a_tasks_end_is_per_minibatch_and_seed(monkeypatch):
    small = CASES["mlp10"]._replace(steps=4)
    end = End("mas", {"strength": 1.0, "samples": 20}, 20)
    ended, clock = [], iter([0.0, 12.0])

    def third_task(problem, steps):
        made = problem.make_strategy
        assert (made.args, made.keywords) == (("mas",), {"settings": end.settings})
        assert (len(problem.seeds), steps) == (3, 4)
        programs = timers.Programs(*(None,) * 7)._replace(
            end=lambda seed, mine, shared: ended.append(shared) or seed
        )
        return timers.Ready(programs, None, np.zeros(()), (), "shared", ())

    monkeypatch.setattr(timers, "_third_task", third_task)
    small = small._replace(ends={"MAS": end})
    timed = timers.jax_end(small, "MAS", 3, "auto")
    monkeypatch.setattr(timers.time, "perf_counter", lambda: next(clock))
    # 12 s for 3 seeds and 20 examples, which are 2 minibatches of 10.
    assert timed() == pytest.approx(12.0 / (3 * 2)) and ended == ["shared"]


def test_a_third_task_has_two_behind_it():
    small = CASES["mlp10"]._replace(steps=2)
    settings = {"strength": 1.0, "samples": 8}
    problem = timers.problem_of(small, "mas", settings, 2, "map")
    ready = timers._third_task(problem, small.steps)
    importance = ready.seed.strategy_state.importance
    assert all((leaf >= 0).all() for leaf in jax.tree.leaves(importance))
    assert any(leaf.any() for leaf in jax.tree.leaves(importance))
    assert int(ready.shared[1]) == 2
