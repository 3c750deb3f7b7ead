"""What a test set can have few of, so that intervals over episodes alone say too much: docs/run_folder.md."""

KINDS = ("classes", "tasks", "sizes")  # classes, tasks of a table, draws of the episodes' sizes
