"""Stands in for the real module."""

import os

from record import note


def mark_process_dead(pid):
    note("mark_process_dead", isinstance(pid, int) and pid != os.getpid())
