#!/usr/bin/env bash
# Build the image with whichever builder is installed:
#   docker/build.sh                   the image, tagged kosmos
#   docker/build.sh --target test     kosmos:test, in which the demo's tests have passed; fails if they fail
# IMAGE is another tag; BASE, TORCH and EXTRAS are passed on as build arguments, see the Dockerfile.
set -euo pipefail
cd "$(dirname "$0")/.."
tag=kosmos
[[ " $* " == *" test "* ]] && tag=kosmos:test
arguments=(-f docker/Dockerfile -t "${IMAGE:-$tag}")
for name in BASE TORCH EXTRAS; do
  [ -n "${!name+set}" ] && arguments+=(--build-arg "$name=${!name}")
done
if docker info >/dev/null 2>&1; then
  exec docker build "${arguments[@]}" "$@" .
elif command -v podman >/dev/null; then
  exec podman build "${arguments[@]}" "$@" .
elif command -v buildah >/dev/null; then
  # chroot isolation needs no user namespaces, so it also works inside a container
  exec buildah build --isolation chroot "${arguments[@]}" "$@" .
fi
echo "docker/build.sh needs docker, podman or buildah; none is installed or running" >&2
exit 2
