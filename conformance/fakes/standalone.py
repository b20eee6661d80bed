"""A fake Ollama server as a process of its own, for benches: `python -m conformance.fakes.ollama`."""

from __future__ import annotations

import argparse
import signal

from conformance.fakes.ollama import FakeOllama

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m conformance.fakes.ollama", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="default: picked by the kernel")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--name", default="fake", help="it appears in every answer")
    parser.add_argument("--model", action="append", help="may be repeated; default: tiny")
    parser.add_argument("--tokens", type=int, help="length of every answer")
    parser.add_argument("--tokens-per-second", type=float, default=0.0, help="0: no pause")
    parser.add_argument("--first-token-delay", type=float, default=0.0, metavar="SECONDS")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM; the first line of output is the URL."""
    options = parse(arguments)
    # Blocked before the serving thread starts, so that only sigwait below sees them.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    rate = options.tokens_per_second
    fake = FakeOllama(
        options.name,
        options.model or ["tiny"],
        port=options.port,
        host=options.host,
        tokens=options.tokens,
        token_delay_s=1 / rate if rate > 0 else 0.0,
    )
    fake.first_token_delay_s = options.first_token_delay
    fake.keep_requests(False)
    with fake:
        print(fake.url, flush=True)
        signal.sigwait(STOP_SIGNALS)
