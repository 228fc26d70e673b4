#!/usr/bin/env bash
# Prepares a node of the cluster: Python, the pinned packages, this project, and what every shell on it needs.
# `ray up` runs it on every node; a second run changes nothing unless requirements.txt has changed.
#   bash ~/tune_adamsrt/cluster/node_setup.sh PYTHON_VERSION
set -euo pipefail
version=${1:?usage: node_setup.sh PYTHON_VERSION, such as 3.12}
cd "$(dirname "$0")/.."
chmod 600 ~/.ray/auth_token # Ray writes it readable for everyone

wanted="python $version, requirements $(sha256sum <requirements.txt | cut -d' ' -f1)"
if ! .venv/bin/python -V >/dev/null 2>&1 || [ "$(cat .node_setup 2>/dev/null)" != "$wanted" ]; then
  rm -rf .venv
  if ! python3 -c 'import ensurepip' 2>/dev/null; then # Debian and Ubuntu ship it apart
    sudo apt-get -o DPkg::Lock::Timeout=600 update -qq
    sudo apt-get -o DPkg::Lock::Timeout=600 install -qq -y python3-venv
  fi
  if command -v "python$version" >/dev/null; then
    "python$version" -m venv .venv
  else # uv brings the Python that the image lacks
    python3 -m venv ~/.uv
    ~/.uv/bin/pip install --quiet --disable-pip-version-check uv
    ~/.uv/bin/uv venv --quiet --seed --python "$version" .venv
  fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
  echo "$wanted" >.node_setup
fi

line=". $PWD/cluster/node_env.sh"
grep -qxF "$line" ~/.bashrc 2>/dev/null || echo "$line" >>~/.bashrc

# Before a cloud takes a spot machine away it says so: see tune_adamsrt/spot.py. On other machines the watcher ends by itself.
# shellcheck source=/dev/null
. cluster/node_env.sh
setsid nohup flock --nonblock ~/.spot_watcher .venv/bin/python -m tune_adamsrt.spot </dev/null >>~/spot_watcher.log 2>&1 &
