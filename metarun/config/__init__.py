"""From a command line to the objects of a run."""
