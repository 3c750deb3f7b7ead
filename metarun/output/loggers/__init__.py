"""The loggers that a run can choose: each is a ``Sink`` in a file of its own, and an option of the group ``logger``."""
