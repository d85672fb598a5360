"""The contract suite, which a method from outside inherits, and the problem it runs on.

Needs what the tests of this project need, pytest, chex and orbax among them: ``pip
install "jaxcl[test]"``. Nothing of the library imports this file.
"""

from jaxcl.testing.problem import small_problem, small_source
from jaxcl.testing.suite import StrategyContract

__all__ = ["StrategyContract", "small_problem", "small_source"]
