"""A hyperparameter search: the one package that knows both the trainer and the storage."""
