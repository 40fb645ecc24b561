"""Which errors are the user's to mend, and how are they told?"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_STDOUT = 1


class InputError(ValueError):
    """What was given cannot be used. The message is one line: what was given, what is allowed, what to type next."""


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """The door of a command: an `InputError` becomes one line on stderr and exit status 2, without a traceback.

    Where the reader of stdout has left (`… | head`), the command ends with the status that a shell gives for that.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)  # so that the interpreter's own flush is silent too
        sys.exit(128 + signal.SIGPIPE)


def _reader_has_left() -> bool:
    poll = select.poll()
    poll.register(_STDOUT, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


class OneLineParser(argparse.ArgumentParser):
    """A command line whose mistakes are `InputError`s: one line, without the usage block."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see: {self.prog} --help")
