"""The options of the group ``launcher``, a file each, and what those that start jobs by an engine of others share."""
