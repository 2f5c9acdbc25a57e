"""The byte by which a server tells its worker how busy it is."""

from __future__ import annotations

import os

from app.worker.load_signal import LoadSignal


def test_the_other_side_sees_what_was_set_last() -> None:
    signal = LoadSignal.create()
    other = LoadSignal.open(os.dup(signal.fd))
    assert other.rows == 0
    for rows, seen in ((3, 3), (0, 0), (1000, 255)):
        signal.rows = rows
        assert other.rows == seen
    other.close()
    signal.close()
