"""Factories for PasteDeploy."""

from shop import app, make_app


def app_factory(global_conf, **local_conf):
    if "name" in local_conf:
        return make_app(local_conf["name"] + " " + global_conf.get("region", ""))
    return app
