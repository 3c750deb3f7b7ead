"""Searches: values of settings are proposed, tried in runs that see no test episode, and the best are tested."""
