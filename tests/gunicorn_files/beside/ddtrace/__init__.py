"""Stands in for the real package."""

from record import note


def patch_all(**which):
    note("ddtrace patch_all", sorted(which.items()))
