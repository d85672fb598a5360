"""The comparison table in LaTeX, for a paper."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .scores import Row
from .tables import COLUMNS, footnotes, title

# Characters that LaTeX reads as commands, or prints as others, in ordinary text.
_WRITTEN = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # at the start of a line it would be an argument of the line's end
    "*": "{*}",  # likewise
    "†": r"\textdagger{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "–": "--",
    "…": r"\ldots{}",
}
_SPECIAL = re.compile("|".join(map(re.escape, _WRITTEN)))
_NEGATIVE = re.compile(r"(?<!\w)-(?=\d)")  # not the hyphen of "ResNet-18"


def latex_table(table: Sequence[Row], extra: Sequence[str] = ()) -> str:
    r"""The table as a ``table`` environment; needs ``\usepackage{booktabs}``.

    Args:
      table: the rows.
      extra: further footnotes; all footnotes are below the table.
    """
    lines = [" & ".join(_cell(cell(row)) for _, cell in COLUMNS) for row in table]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(title(table))}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(COLUMNS) - 1)}}}",
            r"\toprule",
            " & ".join(escape(name) for name, _ in COLUMNS) + r" \\",
            r"\midrule",
            *(rf"{line} \\" for line in lines),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\footnotesize {escape(n)}" for n in [*footnotes(table), *extra]),
            r"\end{table}",
            "",
        ]
    )


def _cell(text: str) -> str:
    return escape(_NEGATIVE.sub("−", text))


def escape(text: str) -> str:
    """A text as LaTeX prints it; control characters are spaces."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return _SPECIAL.sub(lambda found: _WRITTEN[found[0]], plain)
