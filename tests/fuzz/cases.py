"""What the fuzz scripts share: checking a property on many random inputs, and its progress."""

import logging
import os
import sys
import time
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tqdm import tqdm

Property = Callable[[int], int]


def json_values(leaves: st.SearchStrategy, keys: st.SearchStrategy) -> st.SearchStrategy:
    """Values that JSON or Python may hold: numbers and the like, these leaves, and nested lists and dictionaries."""
    return st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=6,
    )


def run_cases(check: Callable, examples: int, *strategies: st.SearchStrategy, cases_per_example: int = 1) -> int:
    """Call `check` with an input from each strategy, `examples` times, and return the number of cases.

    What `check` raises is raised here, with the smallest input found that makes it.
    """
    name = check.__qualname__.split(".")[0]
    with tqdm(total=examples * cases_per_example, desc=name, unit=" cases", mininterval=5, file=sys.stdout) as bar:

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.tuples(*strategies))
        def counted(inputs: tuple) -> None:
            check(*inputs)
            bar.update(cases_per_example)

        counted()
    return bar.n


def main(*properties: Property) -> None:
    """Run properties with as many examples as the command line names, and print the number of cases."""
    examples = int(sys.argv[1]) if sys.argv[1:] else 1_000
    logging.disable(logging.WARNING)  # warnings about what is in the inputs
    start = time.monotonic()
    cases = sum(fuzz(examples) for fuzz in properties)
    seconds = time.monotonic() - start
    print(f"{os.path.basename(sys.argv[0])}: {cases:,} cases in {seconds:,.0f} s, all as documented", flush=True)
