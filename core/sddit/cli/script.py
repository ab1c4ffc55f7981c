"""Run a script with the messages, warnings and exit statuses of the commands."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from sddit.cli import failures
from sddit.cli.output import State, notice, redirect_to_null
from sddit.cli.streams import open_outputs


def run_script(function: Callable[[], object]) -> NoReturn:
    """Call a function and end the process, with the whole number that it returns or 0.

    An error ends with a short message and its exit status; `--debug` adds the traceback.
    """
    open_outputs()
    warnings.showwarning = lambda message, *_: notice(f"warning: {message}")
    status = 0
    try:
        returned = function()
        status = returned if isinstance(returned, int) else 0
        sys.stdout.flush()
    except SystemExit:  # of argparse
        raise
    except KeyboardInterrupt:
        notice("interrupted")
        status = failures.INTERRUPTED
    except BaseException as failure:
        if isinstance(failure, BrokenPipeError) and failures.stdout_is_closed(failure):
            redirect_to_null(sys.stdout)
        else:
            status = failures.report(failure, State(debug="--debug" in sys.argv[1:]))
    sys.exit(status)
