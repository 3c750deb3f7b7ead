"""Robot control: mechanical systems with unknown parameters, and a planner that uses a model of them."""
