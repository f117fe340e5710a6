"""The command line `rdfia`: its parser, what Ctrl-C does, and the exit code of an error.

The checks themselves run in pytest.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence

from rdfia import __version__
from rdfia.commands import assets, features, images, runs, training
from rdfia.commands.results import ExitCode
from rdfia.errors import (
    ArgumentError,
    AssetUnavailable,
    RdfiaError,
    printable,
    printable_line,
)

COMMANDS = (
    *assets.COMMANDS,
    *runs.COMMANDS,
    *features.COMMANDS,
    *images.COMMANDS,
    *training.COMMANDS,
)
INTERRUPTED_MESSAGE = "interrupted; finished work is kept, run the same command again to continue"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "rdfia", description="Four deep-vision labs, checked against their report by pytest."
    )
    parser.add_argument("--version", action="version", version=f"rdfia {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, run, description, arguments in COMMANDS:
        command = subparsers.add_parser(name, help=description, description=description)
        command.set_defaults(run=run, code=ExitCode.SUCCESS)
        for argument, options in arguments.items():
            command.add_argument(argument, **options)
    return parser


def _import_libraries() -> None:
    """Import what commands on images need; Ctrl-C meanwhile ends the process at once.

    A library whose import was interrupted can raise other errors later than KeyboardInterrupt.
    """
    usual = signal.getsignal(signal.SIGINT)
    of_main = threading.current_thread() is threading.main_thread()
    if usual is not signal.default_int_handler or not of_main:
        return  # ignored, or handled by the caller of `main`

    def end(*_: object) -> None:
        os.write(2, f"rdfia: {INTERRUPTED_MESSAGE}\n".encode())
        os._exit(ExitCode.INTERRUPTED)

    signal.signal(signal.SIGINT, end)
    try:
        from rdfia.transfer import extraction  # noqa: F401 - torch, numpy, torchvision, Pillow
    finally:
        signal.signal(signal.SIGINT, usual)


def main(arguments: Sequence[str] | None = None) -> int:
    """The `ExitCode` of the command that `arguments` name, by default those of the process."""
    parser = _parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help(sys.stderr)
        return ExitCode.WRONG_ARGUMENT
    options = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"rdfia: {message}", file=sys.stderr)
            if hasattr(options, "device"):
                _import_libraries()
            return int(options.run(options))
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(options.code)  # what the command had found before it printed
    except KeyboardInterrupt:
        print(f"rdfia: {INTERRUPTED_MESSAGE}", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except RdfiaError as error:
        print(f"rdfia: {error}", file=sys.stderr)
        if isinstance(error, ArgumentError):
            return ExitCode.WRONG_ARGUMENT
        return ExitCode.ASSET_MISSING if isinstance(error, AssetUnavailable) else ExitCode.FAILED
    except OSError as error:  # of a file or folder that no message above names
        reason = error.strerror or error
        what = "" if error.filename is None else f"{printable_line(error.filename)}: "
        print(
            f"rdfia: {what}{printable(reason)}; check the name, the permissions and the disk",
            file=sys.stderr,
        )
        return ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(main())
