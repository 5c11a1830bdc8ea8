"""Optuna's dashboard behind a door, with what a study of ours has to show beside it."""
