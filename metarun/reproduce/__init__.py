"""A paper's figure beside ours: the registry of published results, the runs that repeat them, and the cards they leave."""
