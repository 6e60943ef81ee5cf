"""Turns a configuration file of gunicorn into one for wsgiserv: ``wsgiserv migrate gunicorn.conf.py``."""
