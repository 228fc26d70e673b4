#!/usr/bin/env bash
# Machines to try `ray up` on, without any: each has its own address, processes, /root, /tmp, /dev/shm, and an sshd.
# The rest of the file system is this machine's; /mnt/shared is one folder for all.
#   LAB=FOLDER lab.sh up N                N machines, m0 (10.79.0.10) and so on; `ray up` can run on m0
#   LAB=FOLDER lab.sh run MACHINE CMD     runs a command there
#   LAB=FOLDER lab.sh power-off MACHINE   all its processes and its link are gone at once, without a word
#   LAB=FOLDER lab.sh down
# Needs root, iproute2, util-linux, openssh-server, rsync.
set -euo pipefail
: "${LAB:?name a folder}"
prefix=lab$(printf %s "$LAB" | cksum | cut -c1-4) # two labs side by side do not meet
network=10.79.0

boot() { # name, address
  local name=$1 address=$2 space=$prefix-$1 home=$LAB/$1
  mkdir -p "$home"
  ip netns add "$space"
  ip -n "$prefix" link add "$name" type veth peer name eth0 netns "$space"
  ip -n "$prefix" link set "$name" master bridge up
  ip -n "$space" link set lo up
  ip -n "$space" addr add "$address/24" dev eth0
  ip -n "$space" link set eth0 up
  ip -n "$space" route add default dev eth0 # Ray asks the route to the outside which address is the machine's own
  # shellcheck disable=SC2016 # expanded inside
  setsid ip netns exec "$space" unshare --pid --fork --mount --uts --ipc --kill-child bash -euc '
    name=$1 lab=$2
    mount --make-rprivate /
    hostname "$name"
    mount -t proc proc /proc
    mount -t tmpfs -o size=2g tmpfs /mnt
    mkdir /mnt/shared
    mount --bind "$lab/shared" /mnt/shared
    cp "$lab/key" "$lab/key.pub" /mnt
    for folder in root tmp run; do # what is there can be read; what is written is this machine'"'"'s own
      mkdir "/mnt/$folder" "/mnt/$folder.work"
      mount -t overlay -o "lowerdir=/$folder,upperdir=/mnt/$folder,workdir=/mnt/$folder.work" overlay "/$folder"
    done
    mount -t tmpfs -o size=1g tmpfs /dev/shm
    rm -rf /root/.ray /root/.ssh /root/mlflow /root/tune_adamsrt /tmp/ray[-_]*
    mkdir -p /tmp/ray
    mount -t tmpfs tmpfs /tmp/ray # whoever runs Ray beside the lab writes there
    mkdir -p -m 700 /root/.ssh /run/sshd
    mv /mnt/key /root/.ssh/id_ed25519
    cp /mnt/key.pub /root/.ssh/authorized_keys
    exec /usr/sbin/sshd -D -e -f /dev/null -h /root/.ssh/id_ed25519 -o PidFile=none \
      -o PermitRootLogin=prohibit-password -o MaxStartups=100 -o MaxSessions=100
  ' _ "$name" "$LAB" >"$home/console.log" 2>&1 </dev/null &
  echo $! >"$home/unshare.pid"
  for _ in $(seq 600); do # a busy machine takes its time over the files that were in /tmp
    inside "$name" bash -c 'exec 3<>/dev/tcp/127.0.0.1/22' 2>/dev/null && return
    sleep 0.1
  done
  echo "no sshd on $name; see $home/console.log" >&2
  return 1
}

first_process() { cat "/proc/$(cat "$LAB/$1/unshare.pid")/task/$(cat "$LAB/$1/unshare.pid")/children"; }

inside() { # name, command...
  local name=$1
  shift
  nsenter -t "$(first_process "$name" | tr -d ' ')" -m -n -p -u -i -- \
    env -i HOME=/root USER=root LOGNAME=root LANG=C.UTF-8 TERM=dumb PATH="$PATH" "$@"
}

case ${1:-} in
  up)
    mkdir -p "$LAB/shared"
    ssh-keygen -q -t ed25519 -N '' -f "$LAB/key"
    ip netns add "$prefix"
    ip -n "$prefix" link add bridge type bridge
    ip -n "$prefix" link set bridge up
    for number in $(seq 0 "$(($2 - 1))"); do boot "m$number" "$network.$((10 + number))"; done
    ;;
  run) inside "$2" bash -c "cd; ${*:3}" ;;
  power-off)
    ip -n "$prefix" link set "$2" down
    kill -KILL "$(first_process "$2" | tr -d ' ')"
    rm "$LAB/$2/unshare.pid"
    ;;
  down)
    for file in "$LAB"/m*/unshare.pid; do
      [ -e "$file" ] && "$0" power-off "$(basename "$(dirname "$file")")" || true
    done
    for space in $(ip netns list | awk -v p="^$prefix(-|$)" '$1 ~ p {print $1}'); do ip netns del "$space"; done
    ;;
  *)
    sed -n '2,9p' "$0"
    exit 2
    ;;
esac
