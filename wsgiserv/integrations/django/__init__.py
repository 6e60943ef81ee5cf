"""For Django: the command ``manage.py wsgiserv`` (an app for INSTALLED_APPS), and live test cases (`.test`)."""
