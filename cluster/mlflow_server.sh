#!/usr/bin/env bash
# Starts MLflow on the head unless it runs already. It listens on 127.0.0.1 only: reach it through a tunnel.
#   bash ~/tune_adamsrt/cluster/mlflow_server.sh ARTIFACTS
# ARTIFACTS is a folder or a bucket (s3://..., gs://...). The database is ~/mlflow/mlflow.db, on the head's disk.
set -euo pipefail
artifacts=${1:?usage: mlflow_server.sh ARTIFACTS, such as s3://BUCKET/mlflow}
health() { python3 -c 'import urllib.request as u; u.urlopen("http://127.0.0.1:5000/health", timeout=2)' 2>/dev/null; }
if health; then exit 0; fi
mkdir -p ~/mlflow
cd ~/mlflow
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # evaluation jobs of language models: ten idle processes
setsid nohup ~/tune_adamsrt/.venv/bin/mlflow server --host 127.0.0.1 --port 5000 --workers 1 \
  --backend-store-uri "sqlite:///$HOME/mlflow/mlflow.db" --artifacts-destination "$artifacts" \
  >server.log 2>&1 </dev/null &
for _ in $(seq 180); do
  if health; then exit 0; fi
  sleep 1
done
echo "MLflow did not start within 180 s; see ~/mlflow/server.log" >&2
exit 1
