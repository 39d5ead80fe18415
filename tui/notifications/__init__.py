"""F1: stacks of notifications in one line each, and what is urgent."""
