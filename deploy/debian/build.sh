#!/usr/bin/env bash
# Makes the Debian package: build.sh FILE.deb [option of cargo-deb ...]. Needs cargo-deb (`cargo install cargo-deb --locked`).
#
# SENDOFF_BINARY names a binary that is there already; without it one is compiled. It depends on the C library of this machine:
# build on the oldest release that it is for.
set -euo pipefail

package=${1:?usage: build.sh FILE.deb [option of cargo-deb ...]}
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
target_dir=${CARGO_TARGET_DIR:-$root/target}

if [ -z "${SENDOFF_BINARY:-}" ]; then
  cargo build --manifest-path "$root/Cargo.toml" --locked --release --bin sendoff
  SENDOFF_BINARY=$target_dir/release/sendoff
fi

# Where [package.metadata.deb] of Cargo.toml takes what no file in the sources is: one place, so one at a time.
mkdir -p "$root/target"
exec 9>"$root/target/package.lock"
flock 9
made=$root/target/package
rm -rf "$made"
mkdir -p "$made/man" "$made/completions"
install -m 0755 "$SENDOFF_BINARY" "$made/sendoff"
"$SENDOFF_BINARY" man --dir "$made/man"
gzip -9n "$made"/man/*.1
"$SENDOFF_BINARY" completions bash >"$made/completions/sendoff.bash"
"$SENDOFF_BINARY" completions zsh >"$made/completions/_sendoff"
"$SENDOFF_BINARY" completions fish >"$made/completions/sendoff.fish"

cargo deb --manifest-path "$root/Cargo.toml" --locked --no-build --no-strip --output "$package" "$@"
