"""How long an attempt may take until its first byte. Pure.

Ollama sends nothing while it loads a model, and drops the load when the client leaves (measured): an attempt that is
given up on too early starts from the beginning somewhere else, for ever.
"""

from __future__ import annotations

from dataclasses import dataclass

# A load may take longer than the last one: a busy disk, an eviction first, other models before it.
MARGIN = 2.0
# How much of what was learned is left when the next load is quicker: a cold disk cache comes back.
KEPT = 0.8


@dataclass(frozen=True, slots=True)
class Patience:
    """Args: warm_s: longest wait where the model is loaded. load_s: what loading it adds, at least."""

    warm_s: float
    load_s: float

    def allowance_s(self, learned_s: float) -> float:
        """What loading a model may add, where its last loads took `learned_s` (0: nobody knows)."""
        return max(self.load_s, MARGIN * learned_s)


def learn(before_s: float, took_s: float) -> float:
    """What is remembered of a model's load time after one more load."""
    return max(took_s, before_s * KEPT)
