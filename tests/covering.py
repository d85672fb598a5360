"""Settings that together contain every pair of choices: far fewer than the product."""

from itertools import combinations, product


def pairwise(**choices):
    """A list of dicts; each pair of values of two settings is in at least one of them.

    Greedy and deterministic: it repeatedly takes the element of the product with the
    most new pairs, until there are no new pairs.
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
