# New Relic's agent starts in each worker, after the fork.
#: get /
#: log New Relic agent: worker

import newrelic.agent

preload_app = True


def post_fork(server, worker):
    newrelic.agent.initialize("newrelic.ini")
    newrelic.agent.register_application(timeout=10)
    server.log.info("New Relic agent: worker %s", worker.pid)
