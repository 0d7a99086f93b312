"""The main job, in which process 1 is late with its third round."""

import os
import sys
import time
from contextlib import suppress
from unittest import mock

from experiments import command, train
from experiments.config import config_type, parse
from experiments.processes import pace
from experiments.processes.rendezvous import INDEX
from tests.waiting import wait_until

LATE = 4.0


in_time = train.each_round


def is_awaited() -> bool:
    """Whether process 0 has begun its third round."""
    with suppress(OSError, ValueError):
        text = (parse(sys.argv[1:]).folder / pace.FOLDER / "0").read_text()
        return int(text.split()[0]) >= 3
    return False


def each_round(*args):
    for number, found in enumerate(in_time(*args)):
        if number == 2 and os.environ.get(INDEX) == "1":
            wait_until(is_awaited, seconds=120)
            time.sleep(LATE)
        yield found


if __name__ == "__main__":
    with mock.patch.object(train, "each_round", each_round):
        command.run(train.main, config_type(sys.argv[1:]), __doc__)
