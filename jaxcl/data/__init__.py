"""Data sets, shipped ones and your own, and streams of tasks cut from them."""

from jaxcl.data.arrays import from_arrays
from jaxcl.data.cache import DataError
from jaxcl.data.own_tasks import from_tasks
from jaxcl.data.reading import Reading
from jaxcl.data.scenarios import make_stream
from jaxcl.data.source import Source
from jaxcl.data.sources import load
from jaxcl.data.stream import Stream

__all__ = [
    "DataError",
    "Reading",
    "Source",
    "Stream",
    "from_arrays",
    "from_tasks",
    "load",
    "make_stream",
]
