"""The app for ``INSTALLED_APPS``: ``"wsgiserv.integrations.django"``."""

from django.apps import AppConfig


class WsgiservConfig(AppConfig):  # type: ignore[misc]
    """The app; its label is not ``django``, as its package's name would make it."""

    name = "wsgiserv.integrations.django"
    label = "wsgiserv"
    verbose_name = "wsgiserv"
