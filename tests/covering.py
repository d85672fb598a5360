"""Settings that hold every pair of choices, far fewer than their product."""

from itertools import combinations, product


def pairwise(**choices):
    """A list of dicts in which each two values of two settings meet at least once.

    Greedy and always the same: a setting of the product is taken as long as it holds
    pairs that none before it held, those with most new ones first.
    """
    names = list(choices)
    left = {
        ((a, x), (b, y))
        for a, b in combinations(names, 2)
        for x, y in product(choices[a], choices[b])
    }
    every = [
        tuple(zip(names, values, strict=True)) for values in product(*choices.values())
    ]
    taken = []
    while left:
        best = max(every, key=lambda row: len(left & set(combinations(row, 2))))
        left -= set(combinations(best, 2))
        taken.append(dict(best))
    return taken
