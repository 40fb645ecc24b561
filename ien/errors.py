"""Which errors are the user's to mend, and how are they told?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class InputError(ValueError):
    """What was given cannot be used. The message is one line: what was given, what is allowed, what to type next."""


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """The door of a command: an `InputError` becomes one line on stderr and exit status 2, without a traceback."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


class OneLineParser(argparse.ArgumentParser):
    """A command line whose mistakes are `InputError`s: one line, without the usage block."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see: {self.prog} --help")
