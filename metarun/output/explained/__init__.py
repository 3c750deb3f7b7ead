"""An explanation as people see it: figures, a short table of findings, and a page."""
