"""Claim 1: the bar chart, and which part of its order holds.

All rows have the same network. The author's values claim a sign for each pair of rows.
"""

from __future__ import annotations

from jaxcl.strategies.ol import EXAMPLES

from .claim import Claim, Effect, Outcomes, Question, Run, above
from .decide import difference
from .figures import bar_chart
from .streams import CHART, chart_run

# Mean, lowest and highest seed, in per cent. The spread of BP* is not given.
PUBLISHED = {
    "bp": (63.23, 61.96, 64.45),
    "ewc": (68.34, 67.3, 69.6),
    "owm": (73.6, 73.2, 74.3),
    "hat": (74.6, 73.6, 75.1),
    "gpm": (77.4, 77.3, 77.6),
    "ol": (66.7, 65.9, 67.2),
    "bp_star": (68.1, None, None),
    "bp_star_star": (76.32, 75.82, 77.7),
}

# x, y, the pair's name, and the author's x − y. The claim is that x is above y.
PAIRS = (
    ("bp_star_star", "hat", "BP** − HAT", 1.7),
    ("gpm", "bp_star_star", "GPM − BP**", 1.1),
    ("ewc", "bp", "EWC − BP", 5.1),
    ("bp_star_constant", "bp_constant", "BP* − BP, constant rate", 4.9),
    ("ol", "bp", "OL − BP", 3.5),
    ("hat", "ewc", "HAT − EWC", 6.3),
    ("ol", "random_frozen", "OL − random, frozen", None),
)


def runs(setting: str) -> tuple[Run, ...]:
    """Every row of the chart."""
    return tuple(chart_run(setting, name) for name in CHART)


def effects() -> tuple[Effect, ...]:
    """For each pair, the ACC of the first row minus the ACC of the second."""
    return tuple(
        difference(x, y, name, above(0.0), published) for x, y, name, published in PAIRS
    )


def shown(outcomes: Outcomes) -> list[str]:
    """What OL has made of each layer at the end, mean over seeds."""
    if "ol" not in outcomes:
        return []
    report = outcomes["ol"].result.report
    lines = [
        f"OL after the last task, on up to {EXAMPLES} training images. Outputs that "
        "are equal for all N images have an orthogonal loss of 1 − 1/N, "
        f"{1 - 1 / EXAMPLES:.3f} for {EXAMPLES}.",
        "",
        "| Layer | Orthogonal loss | Images whose outputs are all 0, % |",
        "| --- | ---: | ---: |",
    ]
    for layer, loss in report["orthogonal_loss"].items():
        dead = 100 * report["dead"][layer][:, -1].mean()
        lines.append(f"| {layer} | {loss[:, -1].mean():.3f} | {dead:.1f} |")
    return lines


CLAIM = Claim(
    name="chart",
    number=1,
    statement="On split CIFAR-100 with the task told, GPM > BP** > HAT > EWC > BP, "
    "BP* > BP and OL > BP; and, ours, OL > a random extractor.",
    source="The bar chart of the author's note (Arnolily/Note on GitHub), 5 seeds; "
    "OL > random is this project's control.",
    rule="ACC over ten tasks, x − y for each pair, seed by seed; margin 0. Held: the "
    "95 % paired t interval lies above 0; did not hold: wholly below.",
    runs=runs,
    questions=tuple(Question(effect.name, (effect,)) for effect in effects()),
    shown=shown,
    figure=lambda outcomes, report: bar_chart(outcomes, list(CHART), PUBLISHED),
    notes=(
        "The author's network, epochs and number of tasks are not stated; AlexNet and "
        "ten tasks are our reading.",
        "At `toy` the rate falls as a cosine over each task, which makes last and best "
        "weights alike: BP* and BP are compared at a constant rate, the rows of that "
        "name, and that pair decides.",
        "Weights that a task ends with: the last for BP, OL and Linear, those of best "
        "validation accuracy for the others.",
        "EWC and OWM clip gradients at norm 10 and HAT at 10,000, as their configs do; "
        "no other row clips.",
        "Settings were chosen on validation data of tasks 1–3 of seed 199, which "
        "decides nothing; tasks 4–10 chose nothing and are reported apart.",
        "OL ends at chance: from the third layer on its outputs are the same for all "
        "images, as the table says. Without normalisation they nearly are before any "
        "training: the losses are then .987, .993, .995, .995 and .995, and at the "
        "grid's rates training does not get the upper layers away from there. Tried "
        "outside the rule with `jaxcl run --config=split_cifar100:ol,chart "
        '--config.seeds="(199,)" --config.measure=valid '
        '--config.data.tasks="(0,1)"`, accuracy on task 1: '
        "`--config.optimizer.lr=0.2` 18.4 %; Adam at .001 without decay 22.8 %; "
        "`--config.optimizer.lr=0.005 --config.method.on=pre` 9.2 %.",
    ),
)
