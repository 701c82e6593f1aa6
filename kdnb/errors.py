"""Two errors with a meaning of their own: input that can't be used (exit code 2), and a result that is not what was expected (6)."""

import difflib
from collections.abc import Iterable

_SHOWN = 100  # names in a message


class InputError(ValueError):
    """Bad input from outside (a parameter, a file, a name). The message says what was given, what is allowed and what to do."""


class UnexpectedResult(AssertionError):
    """A check of a notebook does not hold: the run went through, its results are kept, and they are not what was expected."""


def check_name(kind: str, given: str, allowed: Iterable[str]) -> str:
    """Return `given` if it is one of `allowed`, else raise `InputError` with the nearest valid name.

    >>> check_name("dataset", "digits", ["digits", "fashion_mnist"])
    'digits'
    >>> check_name("dataset", "digit", ["digits", "fashion_mnist"])
    Traceback (most recent call last):
    kdnb.errors.InputError: unknown dataset 'digit'; did you mean 'digits'? Allowed: digits, fashion_mnist
    """
    names = list(allowed)
    if given in names:
        return given
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    shown = repr(given) if len(str(given)) <= 80 else repr(str(given)[:77] + "...")
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    raise InputError(f"unknown {kind} {shown}{hint} Allowed: {', '.join(names[:_SHOWN])}{rest}")
