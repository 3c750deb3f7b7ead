"""Meta-learners, one a module, each written for a single task."""
