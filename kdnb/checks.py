"""The checks at the end of a notebook: named statements, judged where they were stated for, kept with the run.

    checks = Checks(run)
    checks.expect("the student beats noise by 30 points", top1 > noise + 0.3, top1 - noise)
    checks.where(p, dataset="digits").expect("the teacher is at least 0.95 right", teacher.top1 >= 0.95, teacher.top1)
    checks.done()

prints a line for each statement and raises `UnexpectedResult` where one does not hold; the runner then ends with the status
`unexpected`. The lines hold no numbers as long as all is well, so that they are the same on every machine.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kdnb.errors import UnexpectedResult
from kdnb.rehearsal import rehearsing


class Check(NamedTuple):
    """One judged statement.

    Attributes:
        statement: a short sentence.
        outcome: ok, unexpected or not judged.
        value: the number that was judged, if one was given.
        because: why it was not judged; empty otherwise.
    """

    statement: str
    outcome: str
    value: float | None
    because: str

    def line(self) -> str:
        if self.outcome == "not judged":
            return f"--   {self.statement}: not judged here, because {self.because}"
        return f"ok   {self.statement}" if self.outcome == "ok" else f"FAIL {self.described()}"

    def described(self) -> str:
        return self.statement if self.value is None else f"{self.statement} (found {self.value:.6g})"


class Checks:
    """Collects the statements of one run.

    Args:
        run: of `kdnb.runs.start_run`; it gets the table `checks` (check, outcome, value, because).
    """

    def __init__(self, run: Any):
        self._run = run
        self._found: list[Check] = []

    def expect(self, statement: str, condition: Any, value: Any = None) -> bool | None:
        """Judge one statement.

        Args:
            statement: a short sentence; each only once.
            condition: true or false, or a function without arguments that says so.
            value: the number that was judged, kept in the table and shown where the statement does not hold.
        Returns:
            Whether it holds.
        """
        return self._judge(statement, condition, value, because="")

    def where(self, parameters: Mapping[str, Any], **setting: Any) -> "_Where":
        """The same `expect` for statements about one setting; elsewhere they are printed as not judged, with the reason.

        Args:
            parameters: the resolved parameters of the run.
            setting: parameter names with the value, or a tuple of the values, for which the statements were made.
        Raises:
            ValueError: a name that is no parameter of the run.

        >>> checks = Checks(run=None)
        >>> checks.where({"dataset": "cifar100"}, dataset="digits").expect("the teacher is at least 0.95 right", False)
        >>> checks.lines()
        ['--   the teacher is at least 0.95 right: not judged here, because dataset is cifar100']
        """
        if unknown := set(setting) - set(parameters):
            raise ValueError(f"no parameter {', '.join(sorted(unknown))} here; there are {', '.join(parameters)}")
        others = [
            f"{name} is {parameters[name]}"
            for name, value in setting.items()
            if parameters[name] not in (value if isinstance(value, tuple) else (value,))
        ]
        return _Where(self, " and ".join(others))

    def lines(self) -> list[str]:
        """One line for each statement, in order."""
        return [check.line() for check in self._found]

    def done(self) -> None:
        """Print the lines and keep them as the run's table `checks`.

        Raises:
            UnexpectedResult: statements that do not hold, each by its name.
            ValueError: nothing was expected.
        """
        if not self._found:
            raise ValueError("no check was made; call expect before done")
        print("\n".join(self.lines()))
        columns = ("check", "outcome", "value", "because")
        self._run.table("checks", [dict(zip(columns, check, strict=True)) for check in self._found])
        if wrong := [check.described() for check in self._found if check.outcome == "unexpected"]:
            raise UnexpectedResult(f"{len(wrong)} of {len(self._found)} checks do not hold: {'; '.join(wrong)}")

    def _judge(self, statement: str, condition: Any, value: Any, because: str) -> bool | None:
        if any(check.statement == statement for check in self._found):
            raise ValueError(f"the check {statement!r} is there twice")
        because = "this is a rehearsal" if rehearsing() else because
        if because:
            self._found.append(Check(statement, "not judged", None, because))
            return None
        holds = bool(condition() if callable(condition) else condition)
        number = None if value is None else float(value)
        self._found.append(Check(statement, "ok" if holds else "unexpected", number, ""))
        return holds


class _Where:
    """`Checks.expect` for a setting; `because` says why it is not this one, empty if it is."""

    def __init__(self, checks: Checks, because: str):
        self._checks, self._because = checks, because

    def expect(self, statement: str, condition: Any, value: Any = None) -> bool | None:
        """As `Checks.expect`; None where the setting is another one, and a function given as condition is not called then."""
        return self._checks._judge(statement, condition, value, self._because)
