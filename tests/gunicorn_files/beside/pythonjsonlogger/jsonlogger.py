"""Stands in for the real module: a formatter with the same call."""

import json
import logging
import re


class JsonFormatter(logging.Formatter):
    def __init__(self, fmt=None, datefmt=None, rename_fields=None, **rest):
        super().__init__(fmt, datefmt)
        self.fields = re.findall(r"%\((\w+)\)", fmt or "%(message)s")
        self.rename = rename_fields or {}

    def format(self, record):
        record.message = record.getMessage()
        return json.dumps({self.rename.get(name, name): getattr(record, name, None) for name in self.fields})
