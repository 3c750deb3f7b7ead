"""What adaptation does to a network, its losses and its predictions: numbers, what is seen of a task, and all of it."""
