"""The page of a study: `study report` writes it, a browser reads it without a network."""
