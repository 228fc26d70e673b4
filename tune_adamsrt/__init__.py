"""A distributed hyper-parameter search for the optimizers of `adamsrt`, on Ray Tune, Optuna and MLflow."""
