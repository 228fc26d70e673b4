# shellcheck shell=bash
# Sourced before `ray start`. With TUNE_ADAMSRT_MPS=1 it starts NVIDIA's MPS for this user on this node, so that the kernels of
# trials that share a GPU run side by side and not by turns. What that costs where something breaks: cluster/README.md.
if [ "${TUNE_ADAMSRT_MPS:-0}" = 1 ]; then
  mps_folder=/tmp/tune_adamsrt-mps-$UID # pipes: never on a file system that nodes share
  if ! command -v nvidia-cuda-mps-control >/dev/null; then
    echo "no MPS here: nvidia-cuda-mps-control is not installed" >&2
  elif nvidia-smi --query-gpu=compute_mode --format=csv,noheader 2>/dev/null | grep -qi prohibited; then
    echo "no MPS here: a GPU's compute mode is Prohibited" >&2
  elif ! (umask 077 && mkdir -p "$mps_folder/log") || [ -L "$mps_folder" ] || [ ! -O "$mps_folder" ]; then
    echo "no MPS here: $mps_folder belongs to somebody else" >&2
  else
    export CUDA_MPS_PIPE_DIRECTORY=$mps_folder CUDA_MPS_LOG_DIRECTORY=$mps_folder/log # for Ray's workers as well
    echo quit | timeout 20 nvidia-cuda-mps-control >/dev/null 2>&1 || true # one of before: an error stays in its server
    if ! env -u CUDA_VISIBLE_DEVICES nvidia-cuda-mps-control -d; then
      unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
      echo "no MPS here: it did not start, see $mps_folder/log" >&2
    fi
  fi
fi
