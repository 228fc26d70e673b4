# shellcheck shell=bash
# What every shell on a node of the cluster has; node_setup.sh adds it to ~/.bashrc.
export PATH="$HOME/tune_adamsrt/.venv/bin:$PATH"
export RAY_AUTH_MODE=token                         # the token is in ~/.ray/auth_token
export RAY_USAGE_STATS_ENABLED=0
export MLFLOW_TRACKING_URI=http://127.0.0.1:5000   # only the search's driver, on the head, talks to it
