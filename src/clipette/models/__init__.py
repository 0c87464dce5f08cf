"""Teachers and students: towers, pairs, and the loaders of the field's model zoos."""
