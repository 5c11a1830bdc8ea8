"""The commands of `mammography`: flags into a config, a call of the library, the result printed, an exit code returned."""
