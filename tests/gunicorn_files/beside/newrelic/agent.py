"""Stands in for the real module."""

from record import note


def initialize(path=None):
    note("newrelic initialize", path)


def register_application(timeout=None):
    note("newrelic register_application", timeout)
