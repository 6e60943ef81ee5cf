"""Hooks that configuration files name by their path."""

from record import note


def when_ready(server):
    note("company when_ready", server.cfg.workers)
