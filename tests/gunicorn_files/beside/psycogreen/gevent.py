"""Stands in for the real module."""

from record import note


def patch_psycopg():
    note("patch_psycopg")
