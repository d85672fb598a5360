"""How a task is trained: its length, its batches, patience and selection."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from jaxcl import schema
from jaxcl.schema import Count, Natural, NonNegative, OneOf, Positive, Range

SELECT = ("last", "best")
METRICS = ("accuracy", "loss")
Measured = Annotated[str, OneOf(("all", "seen"))]
"""Which tasks are measured after each task: all, or those so far and the next."""
SCHEDULES = ("constant", "cosine", "linear")


class Plan(NamedTuple):
    """How a task is trained; static.

    Attributes:
      epochs: the most epochs per task; None only with `max_steps`.
      first_epochs: epochs of the first task, instead of `epochs`, which must also be
        given; 0 leaves the network as initialised, for example with pretrained weights.
        None: as many as for every other task.
      batch_size: B.
      eval_batch_size: of validation and test batches; matters for models that use the
        batch's own statistics.
      max_steps: the most steps per task, or None. A task may end inside an epoch.
      patience: epochs without a better `patience_metric` before the learning rate is
        divided by `lr_factor`; None never does.
      lr_factor: > 1.
      lr_min: a seed whose learning rate falls below lr_min is done with the task.
      lr: the rate that lr_min and lr_floor are compared with.
      patience_metric: the validation "accuracy" or "loss" that patience follows.
      select: "last" or "best" weights are carried to the next task.
      select_metric: the validation "accuracy" or "loss" that defines "best"; of equally
        good epochs the first counts.
      schedule: one of `SCHEDULES`, of the learning rate over each task; see
        `jaxcl.training.schedule.make_rate`.
      warmup: share of each task over which the rate rises from 0; in [0, 1).
      decay_per_task: factor of the rate from one task to the next; > 0.
      lr_floor: the lowest rate that `decay_per_task` can give a task; ≥ 0.
    """

    epochs: Count | None
    batch_size: Count
    eval_batch_size: Count = 256
    max_steps: Count | None = None
    patience: Count | None = None
    lr_factor: Annotated[float, Range(1, open="(")] = 3.0
    lr_min: NonNegative = 1e-4
    lr: NonNegative = 0.0
    patience_metric: Annotated[str, OneOf(METRICS)] = "accuracy"
    select: Annotated[str, OneOf(SELECT)] = "last"
    select_metric: Annotated[str, OneOf(METRICS)] = "accuracy"
    schedule: Annotated[str, OneOf(SCHEDULES)] = "constant"
    warmup: schema.Part = 0.0
    decay_per_task: Positive = 1.0
    lr_floor: NonNegative = 0.0
    first_epochs: Natural | None = None

    def epochs_of(self, task: int) -> int | None:
        """The most epochs of a task, counted from 0; None: as many as steps allow."""
        first = task == 0 and self.first_epochs is not None
        return self.first_epochs if first else self.epochs


def validate_plan(plan: Plan, *, has_validation: bool) -> None:
    """Refuses a plan that cannot be carried out.

    Raises:
      ValueError: the message gives the value and the rule.
    """
    schema.require_all("", plan._asdict(), schema.kinds_of(Plan))
    if plan.epochs is None and plan.max_steps is None:
        raise ValueError("epochs or max_steps must be given, both are None")
    if plan.first_epochs is not None and plan.epochs is None:
        raise ValueError(
            f"first_epochs={plan.first_epochs} needs epochs for the other tasks, got "
            "None"
        )
    if plan.lr_floor > plan.lr:
        raise ValueError(
            f"lr_floor must be at most the rate, {plan.lr}, got {plan.lr_floor}"
        )
    scheduled = plan.schedule != "constant" or plan.warmup or plan.decay_per_task != 1
    if scheduled and plan.patience is not None:
        raise ValueError(
            f"patience={plan.patience} and a schedule would both set the learning "
            f"rate: use patience=None, or schedule='constant' (got {plan.schedule!r}), "
            f"warmup=0 (got {plan.warmup}) and decay_per_task=1 (got "
            f"{plan.decay_per_task})"
        )
    if plan.patience is not None and plan.lr < plan.lr_min:
        raise ValueError(
            f"patience={plan.patience} needs the optimizer's rate, lr, of at least "
            f"lr_min, {plan.lr_min}, got {plan.lr}: the first decay would end the task"
        )
    if not has_validation and (plan.patience or plan.select == "best"):
        raise ValueError(
            f"select={plan.select!r} with patience={plan.patience} needs "
            "validation data: set valid_fraction above 0"
        )
