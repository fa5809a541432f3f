"""How long the tests are, the one place that says so: short in `make test`, long in `make test-long`."""

import os

LENGTH = os.environ.get("DCO_TRL_TEST_LENGTH", "short")
if LENGTH not in ("short", "long"):
    raise ValueError(f'DCO_TRL_TEST_LENGTH must be "short" or "long", got {LENGTH!r}.')
LONG = LENGTH == "long"

# Moments at which a process is killed.
KILLS = 12 if LONG else 3
# Random inputs to each property of tests/fuzz. `make fuzz` runs as many as wanted.
EXAMPLES = 1_000 if LONG else 100
# Hostile strings that graders read.
GENERATED_TEXTS = 10_000 if LONG else 1_000
# Simulated data sets per interval: in the short ones, four standard errors of a coverage are two points.
NUM_TRIALS = 6_000 if LONG else 2_000
# Problems of MATH whose verdicts are compared with math-verify's.
MATH_PROBLEMS = 100 if LONG else 25
# Share of their work that notebooks do; 1 is what their outputs show.
NOTEBOOK_SIZE = 1.0 if LONG else 0.1
