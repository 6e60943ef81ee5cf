# Hooks named by their path, and hooks that are methods or callables.
#: get /
#: wait 2 .

from record import note


class Hooks:
    def __init__(self, name):
        self.name = name

    def post_fork(self, server, worker):
        note(self.name, "post_fork", worker.age)


hooks = Hooks("shop")
post_fork = hooks.post_fork
when_ready = "company_hooks.when_ready"
