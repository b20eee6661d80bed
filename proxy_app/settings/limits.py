"""What one key may use at most."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """Args: None means no limit.

    rpm: requests a minute. burst: how many more may come at once.
    concurrent: requests under way at one time.
    tpm, tpd: tokens, in and out, a minute and a day (UTC).
    gpu: seconds of a GPU's work a day (UTC).
    num_ctx, num_predict: tokens of context, and of an answer.
    images, body: with one request; body in bytes.
    keep_alive: seconds that a model stays loaded after a request.
    """

    rpm: int | None = None
    burst: int | None = None
    concurrent: int | None = None
    tpm: int | None = None
    tpd: int | None = None
    gpu: int | None = None
    num_ctx: int | None = None
    num_predict: int | None = None
    images: int | None = None
    body: int | None = None
    keep_alive: int | None = None

    def over(self, default: KeyLimits) -> KeyLimits:
        """These limits, and the default's where these say nothing."""
        return KeyLimits(*(_first(getattr(self, f.name), getattr(default, f.name)) for f in fields(self)))

    def __str__(self) -> str:
        """The form that `parse_limits` reads."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return ",".join(f"{name}={value}" for name, value in values.items() if value is not None) or "none"

    @property
    def counts(self) -> bool:
        """Is there a limit that depends on what was used before?"""
        counted = (self.rpm, self.concurrent, self.tpm, self.tpd, self.gpu)
        return any(limit is not None for limit in counted)

    @property
    def counts_work(self) -> bool:
        """Is there a limit of what an answer costs, which is known only at its end?"""
        return any(limit is not None for limit in (self.tpm, self.tpd, self.gpu))


def parse_limits(text: str) -> KeyLimits:
    """Read `rpm=60,concurrent=4`, or `none`; 0 lets nothing pass.

    Raises:
        ValueError: a name that is none, or no whole number.
    """
    known = [f.name for f in fields(KeyLimits)]
    values: dict[str, int] = {}
    if text.strip() == "none":
        return KeyLimits()
    for piece in text.replace(",", " ").split():
        name, _, number = piece.partition("=")
        if name not in known or not number.isdecimal():
            raise ValueError(f"{piece!r}: expected one of {', '.join(f'{name}=N' for name in known)}")
        values[name] = int(number)
    return KeyLimits(**values)


def _first(own: int | None, default: int | None) -> int | None:
    return default if own is None else own
