"""From an archive to arrays: nothing here knows a network."""
