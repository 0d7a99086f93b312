"""The main job, in which process 1 is late with its third round."""

import os
import sys
import time
from unittest import mock

from experiments import command, train
from experiments.config import config_type
from experiments.processes.rendezvous import INDEX

LATE = 4.0


in_time = train.each_round


def each_round(*args):
    for number, found in enumerate(in_time(*args)):
        if number == 2 and os.environ.get(INDEX) == "1":
            time.sleep(LATE)
        yield found


if __name__ == "__main__":
    with mock.patch.object(train, "each_round", each_round):
        command.run(train.main, config_type(sys.argv[1:]), __doc__)
