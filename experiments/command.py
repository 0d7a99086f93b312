"""The command line of every study: its options, and how it is stopped."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import tyro

from experiments.signals import exit_status, like_ctrl_c

Config = TypeVar("Config")
USAGE = 2
"""The exit status after a UsageError, and of a wrong command line."""


class UsageError(ValueError):
    """What was asked for cannot be done; the message is all that a user has to read."""


@contextmanager
def refused() -> Iterator[None]:
    """Raises a ValueError within as a UsageError: what came is the user's."""
    try:
        yield
    except ValueError as error:
        raise UsageError(error) from None


STOPPING = """
Ctrl-C stops it, and so does `kill PID`: what is logged by then stays. A shell starts
commands in the background (&) deaf to Ctrl-C; use kill for those."""


def run(
    main: Callable[[Config], int | None],
    config_type: type[Config],
    description: str | None,
    args: Sequence[str] | None = None,
) -> NoReturn:
    """Runs a program with the options of its command line, and exits.

    Args:
      main: the program; returns its exit status, None for success.
      config_type: a dataclass of the options.
      description: what ``--help`` says before them.
      args: the command line; None takes that of the process.

    Raises:
      SystemExit: always; after Ctrl-C or a signal like it with 128 and its number, and
        with 2 after a UsageError or 1 after an OSError, whose message it prints.
    """
    config = tyro.cli(config_type, description=f"{description}{STOPPING}", args=args)
    status: int | None = 1
    with like_ctrl_c():
        try:
            status = main(config)
        except KeyboardInterrupt as stop:
            print("Interrupted.", file=sys.stderr)
            status = exit_status(stop)
        except UsageError as error:
            print(error, file=sys.stderr)
            status = USAGE
        except OSError as error:
            print(error, file=sys.stderr)
            status = 1
        except Exception:
            if not _is_one_of_several():
                raise
            traceback.print_exc()
    if status and _is_one_of_several():
        # At its exit JAX waits for the other processes for minutes, and they wait for
        # this one in a collective.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)


def divided(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words before ``--``, and those behind it.

    Examples:
      >>> divided(["--seeds", "0", "--", "--epochs", "20"])
      (['--seeds', '0'], ['--epochs', '20'])
    """
    end = words.index("--") if "--" in words else len(words)
    return [*words[:end]], [*words[end + 1 :]]


def _is_one_of_several() -> bool:
    """Whether JAX has met other processes; those that never imported it have none."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()
