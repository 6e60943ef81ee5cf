"""Hides gunicorn, as if it were not installed: most who come from it remove it."""

from importlib.machinery import PathFinder

_find_spec = PathFinder.find_spec


def find_spec(cls, name, path=None, target=None):
    """Find all modules but gunicorn's."""
    return None if name.partition(".")[0] == "gunicorn" else _find_spec(name, path, target)


# In the class: some ask it without the list of finders.
PathFinder.find_spec = classmethod(find_spec)
