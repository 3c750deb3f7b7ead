"""What the command line can do: one run, a sweep, and the sub-commands."""
