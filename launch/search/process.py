"""What does one process of a trial's run do? (`python -m launch.search.process`, started by `launch.search.trial`)

A line on its standard input holds the settings of the run. After every epoch the first process writes the record as a
line of JSON to what was its standard output, and waits for a word: `go`, or `end`. Where nobody is left to say it, the
run saves and leaves.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from typing import TextIO

from ien.errors import InputError
from ien.lock import InUseError
from ien.stopping import STOPPED, Stopped, hold_back

IN_USE = 69  # exit status where another process has the run folder (sysexits.h: EX_UNAVAILABLE)
REFUSED = 2  # where the settings cannot be used: trying again is of no use
GO, END = "go", "end"


def main() -> None:
    """Train the run that standard input describes."""
    hold_back()
    said = _standard_output()
    settings = json.loads(sys.stdin.readline())
    words: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(words,), daemon=True).start()
    first = os.environ.get("RANK", "0") == "0"

    def report(record: dict[str, object]) -> None:
        if first:
            print(json.dumps(record), file=said, flush=True)
            if words.get() == END:
                signal.raise_signal(signal.SIGTERM)  # all processes agree to stop, as at any other request

    from ien import train
    from ien.config import Config

    try:
        train.run(Config.model_validate(settings), report)
    except Stopped:
        sys.exit(STOPPED)
    except InUseError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(IN_USE)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(REFUSED)


def _standard_output() -> TextIO:
    """For records alone: whatever a library prints goes where the errors go."""
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return said


def _listen(words: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        words.put(line.strip())
    words.put(END)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
