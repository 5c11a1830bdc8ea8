"""What lasts: PostgreSQL, the output tree, the records. Never torch."""
