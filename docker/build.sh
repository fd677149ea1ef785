#!/usr/bin/env bash
# Build the image with whichever builder is installed. BASE and EXTRAS are passed on as build arguments.
set -euo pipefail
cd "$(dirname "$0")/.."
arguments=(-f docker/Dockerfile -t "${IMAGE:-kosmos}")
for name in BASE EXTRAS; do
  [ -n "${!name:-}" ] && arguments+=(--build-arg "$name=${!name}")
done
if docker info >/dev/null 2>&1; then
  exec docker build "${arguments[@]}" .
elif command -v podman >/dev/null; then
  exec podman build "${arguments[@]}" .
elif command -v buildah >/dev/null; then
  # chroot isolation needs no user namespaces, so it also works inside a container
  exec buildah build --isolation chroot "${arguments[@]}" .
fi
echo "make image needs docker, podman or buildah; none is installed or running" >&2
exit 2
