"""The contract suite, to inherit when you test your own method, and its small problem.

It needs the packages of this project's tests, such as pytest, chex and orbax: ``pip
install "jaxcl[test]"``. Nothing in the library imports this file.
"""

from jaxcl.testing.problem import small_problem, small_source
from jaxcl.testing.suite import StrategyContract

__all__ = ["StrategyContract", "small_problem", "small_source"]
