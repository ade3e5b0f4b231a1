"""The backends. registry.py chooses one for each param group; base.py is the protocol that all of them implement."""
