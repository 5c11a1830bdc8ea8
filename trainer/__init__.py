"""One configuration, trained: no database, no Optuna."""
