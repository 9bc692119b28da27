#!/bin/sh
# A shell in the container that holds trtexec, with this project in /workspace. Build the image first, on a host with a
# GPU: docker/build tensorrt
set -eu
project="$(cd "$(dirname "$0")/.." && pwd)"
terminal=
[ ! -t 0 ] || terminal=--tty # without one, a script may be piped in
# shellcheck disable=SC2086
exec docker run --rm --interactive $terminal --gpus all --shm-size 1g --user "$(id -u):$(id -g)" \
    --volume "$project:/workspace" --workdir /workspace/convertation \
    "${NIGHTSHIFT_REGISTRY:-nightshift}/tensorrt:${NIGHTSHIFT_TAG:-dev}" bash
