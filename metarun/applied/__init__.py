"""A finished run, and what is done with it: loaded again, adapted to new labelled examples, exported."""
