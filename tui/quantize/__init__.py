"""F4: what every operation of a model takes, and how many bits each should get."""
