"""Who is missing, by what JAX has printed."""

import pytest

from experiments.processes.missing import Missing

VERDICT = (
    "E1130 coordination_service.cc:1549] UNAVAILABLE: The following tasks are "
    "unhealthy (stopped sending heartbeats):",
    "{}",
    "    @     0x7f6f01e40634  absl::lts_20260107::log_internal::LogMessage::Flush()",
    "RPC: /xla.coordination.CoordinationService/PollForError",
)
UNANSWERED = (
    "F1130 client.h:80] absl::Status: DEADLINE_EXCEEDED: Deadline Exceeded",
    "RPC: /xla.coordination.CoordinationService/Heartbeat",
)


def verdict(tasks):
    return [line.format(tasks) for line in VERDICT]


@pytest.mark.parametrize(
    ("lines", "processes"),
    [
        ({}, []),
        ({0: verdict(2)}, [2]),
        ({0: verdict("1, 3")}, [1, 3]),
        ({1: UNANSWERED, 2: verdict(3)}, [3]),  # 1 polls in vain
        ({1: UNANSWERED, 2: UNANSWERED}, [0]),
        ({0: verdict("1, 2, 3"), 2: UNANSWERED}, [0]),
    ],
)
def test_who_is_missing(lines, processes):
    missing = Missing(4)
    for step in range(4):  # of one process between those of another
        for index, printed in lines.items():
            if step < len(printed):
                missing.read(index, printed[step])
    assert missing.processes == processes


def test_one_of_two_is_missing():
    missing = Missing(2)
    for line in verdict(1):
        missing.read(0, line)
    assert missing.processes == [1]
