"""Inner loops: their steps, their optimizers, and closed-form heads."""
