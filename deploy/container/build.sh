#!/usr/bin/env bash
# Makes the directory that the image is built from: build.sh DIR, then `docker build DIR` (or buildah, podman, kaniko).
#
# SENDOFF_BINARY names a static binary that is there already; without it one is compiled: static-pie, so that it runs in an
# image that has no C library.
# CA_BUNDLE names the certificate authorities, in PEM; by default those of this machine.
set -euo pipefail

context=${1:?usage: build.sh DIR}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
ca_bundle=${CA_BUNDLE:-/etc/ssl/certs/ca-certificates.crt}

if [ -z "${SENDOFF_BINARY:-}" ]; then
  triple=$(rustc -vV | sed -n 's/^host: //p')
  # The target is named although it is the host's: else the flags would reach build scripts and macros, too.
  RUSTFLAGS="-C target-feature=+crt-static -C strip=symbols" SOURCE_DATE_EPOCH=0 \
    cargo build --manifest-path "$root/Cargo.toml" --locked --release --bin sendoff --target "$triple"
  target_dir=${CARGO_TARGET_DIR:-$root/target}
  SENDOFF_BINARY=$target_dir/$triple/release/sendoff
fi
if readelf -l "$SENDOFF_BINARY" 2>/dev/null | grep -q INTERP; then
  echo "$SENDOFF_BINARY is not static: an image from scratch cannot run it" >&2
  exit 1
fi

mkdir -p "$context/state"
install -m 0755 "$SENDOFF_BINARY" "$context/sendoff"
install -m 0644 "$ca_bundle" "$context/ca-certificates.crt"
install -m 0644 "$here/Dockerfile" "$context/Dockerfile"
# Same bytes, same image.
find "$context" -exec touch --no-dereference --date=@0 {} +
echo "$context is ready: docker build --tag sendoff $context"
