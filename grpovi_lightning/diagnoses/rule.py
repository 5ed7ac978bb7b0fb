"""What a diagnosis is: a rule over the scalars of a run, and what it finds."""

from collections.abc import Callable
from dataclasses import dataclass

from grpovi_lightning.diagnoses.logged import Logged


@dataclass(frozen=True)
class Evidence:
    """What a rule saw.

    Attributes:
        text: the numbers and the steps, as a part of a sentence.
        step: where it was seen last.
        value: the number that was over the threshold.
        best_step: step of the best held-out evaluation, where the remedy is to go back to it.
    """

    text: str
    step: int
    value: float
    best_step: int | None = None


@dataclass(frozen=True)
class Finding:
    """A diagnosis of one run.

    Attributes:
        kind: the diagnosis, as the rule is called.
        evidence: what was seen.
        threshold: what it was held against.
        source: where the threshold comes from.
        remedy: what to do.
    """

    kind: str
    evidence: Evidence
    threshold: str
    source: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.evidence.text} ({self.threshold}). {self.remedy}"


@dataclass(frozen=True)
class Rule:
    """One diagnosis.

    Attributes:
        kind: its name.
        judge: the scalars of a run -> what it saw, or None.
        missing: the scalars of a run -> those that the rule needs and that were not logged.
        threshold: in words, with its number.
        source: where the threshold comes from.
        remedy: what to do.
        at_end: whether it takes the whole run to judge.
    """

    kind: str
    judge: Callable[[Logged], Evidence | None]
    missing: Callable[[Logged], tuple[str, ...]]
    threshold: str
    source: str
    remedy: str
    at_end: bool = False

    def __call__(self, run: Logged) -> Finding | None:
        """Return the finding, or None."""
        evidence = self.judge(run)
        return evidence and Finding(self.kind, evidence, self.threshold, self.source, self.remedy)


def needs(*names: str) -> Callable[[Logged], tuple[str, ...]]:
    """Return a function of a run that says which of these scalars it did not log."""
    return lambda run: tuple(name for name in names if run.get(name) is None)


def share(value: float) -> str:
    """Return a share for a sentence.

    >>> share(0.123), share(0.9999), share(0.00012)
    ('12 %', '99.99 %', '0.012 %')
    """
    return f"{100 * value:.2g} %" if value < 0.995 else f"{100 * value:.4g} %"


def number(value: float) -> str:
    """Return a number for a sentence: three digits.

    >>> number(0.12345), number(-1234.5)
    ('0.123', '-1.23e+03')
    """
    return f"{value:.3g}"
