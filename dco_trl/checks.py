"""Checks of arguments that several rooms take. Each returns the checked value, or raises a `UserError`."""

import difflib
from collections.abc import Collection, Iterable
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import UserError

# A sum of float32 log-softmax terms may round this far above 0.
LOG_P_ROUNDING = 1e-5
_LARGEST = 2**63 - 1


def check_integer(name: str, value: object, at_least: int = 1, note: str = "") -> int:
    """`value` as an `int`. NumPy's integers are integers; booleans and whole floats are not."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
        note = f" ({note})" if note else ""
        raise UserError(f"must be an integer of at least {at_least}{note}, got {value!r}.", name)
    if int(value) > _LARGEST:
        raise UserError(f"must be at most 2^63 - 1, about 9.2e18, got {value}. Take a smaller one.", name)
    return int(value)


def check_num_attempts(num_attempts: object) -> int:
    """The number of attempts N of a loss or a weight."""
    return check_integer("num_attempts", num_attempts, note="1 is plain cross-entropy")


def check_num_required(num_required: object, num_attempts: int) -> int:
    """The number of attempts m, of N, that must be right."""
    m = check_integer("num_required", num_required, note="1 is coverage: one right attempt is enough")
    if m > num_attempts:
        raise UserError(
            f"`num_required={m}` is more than `num_attempts={num_attempts}`: so many attempts cannot be right. Lower "
            "it, or raise `num_attempts`."
        )
    return m


def check_whole_numbers(name: str, value: ArrayLike, at_least: int = 0) -> NDArray[np.int64]:
    """An integer array (whole floats, as pandas makes them, are fine)."""
    array = np.asarray(value)
    if array.dtype.kind == "f" and np.all(np.abs(array) < 2**53) and np.all(array == np.floor(array)):
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        some = np.array2string(array.ravel(), separator=", ", threshold=4, edgeitems=2)
        raise UserError(f"{name} must be whole numbers (counts), got {some} of type {array.dtype}.")
    if array.size and array.min() < at_least:
        raise UserError(f"{name} must be whole numbers of at least {at_least}, got {array.min()}.")
    return array.astype(np.int64)


def check_ks(k: ArrayLike) -> NDArray[np.int64]:
    """The numbers of samples of a curve, as a vector."""
    ks = np.atleast_1d(check_whole_numbers("k", k, at_least=1))
    if ks.size == 0:
        raise UserError(
            "k is empty: there is no pass@k to compute. Give at least one number of samples, such as k=[1]."
        )
    return ks


def check_log_p(log_p: ArrayLike) -> NDArray[np.float64]:
    """Natural log-probabilities, at most 0."""
    x = np.asarray(log_p, dtype=np.float64)
    if np.isnan(x).any():
        raise UserError(f"log_p holds {np.isnan(x).sum()} NaN of {x.size} values. Look at the model's loss.")
    if (x > LOG_P_ROUNDING).any():
        raise UserError(
            f"log_p must be a log-probability, at most 0, got {x.max():g}. Pass natural log-probabilities, not "
            "probabilities or negative log-likelihoods."
        )
    return np.minimum(x, 0.0)


def check_graded_counts(num_samples: ArrayLike, num_correct: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whole counts of graded samples, as two arrays of one shape."""
    n = check_whole_numbers("num_samples", num_samples, at_least=1)
    return _check_pair("num_samples", n, "num_correct", check_whole_numbers("num_correct", num_correct))


def check_discounted_counts(
    num_sampled: ArrayLike, num_correct: ArrayLike, name_correct: str = "num_correct"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Real-valued counts, as forgetting makes them, as two arrays of one shape."""
    n = _check_counts("num_sampled", num_sampled)
    return _check_pair("num_sampled", n, name_correct, _check_counts(name_correct, num_correct))


def _check_counts(name: str, value: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        hint = " An empty entry of a table is often the reason." if array.dtype.kind == "O" else ""
        raise UserError(f"{name} must hold numbers, got an array of {array.dtype}.{hint}")
    if array.size == 0:
        raise UserError(f"{name} is empty: there is no prompt whose samples were counted.")
    array = array.astype(np.float64)
    wrong = ~np.isfinite(array) | (array < 0)
    if wrong.any():
        raise UserError(
            f"{name} must hold counts of at least 0, got {array[wrong].flat[0]} {which_entries(wrong)}. Was a prompt "
            "not graded?"
        )
    return array


def _check_pair(name_n: str, n: NDArray, name_c: str, c: NDArray) -> tuple[NDArray, NDArray]:
    try:
        n, c = np.broadcast_arrays(n, c)
    except ValueError:
        raise UserError(
            f"{name_n} has shape {n.shape} and {name_c} {c.shape}: they must be equal, or one a scalar."
        ) from None
    wrong = c > n
    if wrong.any():
        raise UserError(
            f"{name_c}={c[wrong][0]:.12g} is more than {name_n}={n[wrong][0]:.12g} {which_entries(wrong)}. Are the "
            "two swapped, or some samples graded twice?"
        )
    return n, c


def check_confidence(confidence: float, num_resamples: int = 5000) -> None:
    """Refuse a confidence that the resamples of a bootstrap cannot resolve."""
    if not 0.5 <= confidence <= 0.999:
        raise UserError(
            f"confidence must be between 0.5 and 0.999, got {confidence}. Write 0.95 for 95 %; more than 0.999 needs "
            "more than a bootstrap."
        )
    if num_resamples < 100:
        raise UserError(f"num_resamples must be at least 100 for quantiles to mean anything, got {num_resamples}.")


def check_names(what: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse options that `what` does not have, and suggest the nearest one."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise UserError(
                f"{what} does not know the option {name!r}. "
                + (f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(sorted(known))}.")
            )


def which_entries(wrong: NDArray[np.bool_]) -> str:
    """Say which entry of an array is the first wrong one, and how many there are."""
    first, *more = np.argwhere(np.atleast_1d(wrong))[0].tolist()
    return f"(entry {(first, *more) if more else first}, counted from 0; {wrong.sum()} such entries)"
