"""How a task is trained: its length, its batches, patience and selection."""

from __future__ import annotations

from typing import NamedTuple

SELECT = ("last", "best")
METRICS = ("accuracy", "loss")
SCHEDULES = ("constant", "cosine", "linear")


class Plan(NamedTuple):
    """How a task is trained; static.

    Attributes:
      epochs: at most; None only with `max_steps`.
      batch_size: B.
      eval_batch_size: of validation and test batches alike; matters to models that use
        the batch's own statistics.
      max_steps: steps per task at most, or None. A task may end inside an epoch.
      patience: epochs without a better `patience_metric` before the learning rate is
        divided by `lr_factor`; None never does.
      lr_factor: > 1.
      lr_min: a seed whose learning rate falls below lr_min is done with the task.
      lr: the rate that lr_min and lr_floor are compared with.
      patience_metric: the validation "accuracy" or "loss" that patience follows.
      select: "last" or "best" weights are carried to the next task.
      select_metric: the validation "accuracy" or "loss" that "best" is measured by; of
        equally good epochs the first.
      schedule: one of `SCHEDULES`, of the learning rate over each task; see
        `jaxcl.training.schedule.make_rate`.
      warmup: share of each task over which the rate rises from 0; in [0, 1).
      decay_per_task: what the rate is multiplied by from one task to the next; > 0.
      lr_floor: the rate that `decay_per_task` does not take a task below; ≥ 0.
    """

    epochs: int | None
    batch_size: int
    eval_batch_size: int = 256
    max_steps: int | None = None
    patience: int | None = None
    lr_factor: float = 3.0
    lr_min: float = 1e-4
    lr: float = 0.0
    patience_metric: str = "accuracy"
    select: str = "last"
    select_metric: str = "accuracy"
    schedule: str = "constant"
    warmup: float = 0.0
    decay_per_task: float = 1.0
    lr_floor: float = 0.0


def validate_plan(plan: Plan, *, has_validation: bool) -> None:
    """Refuses a plan that cannot be carried out.

    Raises:
      ValueError: it quotes the value and the rule.
    """
    for name in ("epochs", "max_steps", "batch_size", "eval_batch_size"):
        value = getattr(plan, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if plan.epochs is None and plan.max_steps is None:
        raise ValueError("epochs or max_steps must be given, both are None")
    for name, allowed in (
        ("select", SELECT),
        ("select_metric", METRICS),
        ("patience_metric", METRICS),
        ("schedule", SCHEDULES),
    ):
        if getattr(plan, name) not in allowed:
            raise ValueError(
                f"{name} must be one of {', '.join(allowed)}, got "
                f"{getattr(plan, name)!r}"
            )
    if not 0 <= plan.warmup < 1:
        raise ValueError(f"warmup must lie in [0, 1), got {plan.warmup}")
    if not plan.decay_per_task > 0:
        raise ValueError(
            f"decay_per_task must be greater than 0, got {plan.decay_per_task}"
        )
    if not 0 <= plan.lr_floor <= plan.lr and plan.lr_floor:
        raise ValueError(
            f"lr_floor must lie between 0 and the rate, {plan.lr}, got {plan.lr_floor}"
        )
    scheduled = plan.schedule != "constant" or plan.warmup or plan.decay_per_task != 1
    if scheduled and plan.patience is not None:
        raise ValueError(
            f"patience={plan.patience} and a schedule would both set the learning "
            f"rate: use patience=None, or schedule='constant' (got {plan.schedule!r}), "
            f"warmup=0 (got {plan.warmup}) and decay_per_task=1 (got "
            f"{plan.decay_per_task})"
        )
    if plan.patience is not None:
        if plan.patience < 1 or plan.lr_factor <= 1:
            raise ValueError(
                "patience must be at least 1 and lr_factor greater than 1, got "
                f"{plan.patience} and {plan.lr_factor}"
            )
    if not has_validation and (plan.patience or plan.select == "best"):
        raise ValueError(
            f"select={plan.select!r} with patience={plan.patience} needs "
            "validation data: set valid_fraction above 0"
        )
