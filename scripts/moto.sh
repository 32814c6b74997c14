#!/usr/bin/env bash
# Prints the Python that has moto, a stand-in for Amazon S3 that the tests run on this machine; installs it first where
# it is missing, into a cache that all clones of one user share. Nothing but the path is written to standard output.
set -euo pipefail

version=5.2.5
cache=${XDG_CACHE_HOME:-$HOME/.cache}/polygram
home=$cache/moto-$version
# Made last: a folder without it is not whole.
seal=$home/whole

say() { printf '%s\n' "$*" >&2; }
die() {
  say "moto: $1"
  shift
  [ $# -eq 0 ] || printf '  %s\n' "$@" >&2
  exit 1
}

if [ ! -e "$seal" ]; then
  mkdir -p "$cache"
  command -v flock >/dev/null || die "the command flock is missing" "install util-linux"
  exec 9>"$cache/moto.lock"
  flock -n 9 || {
    say "moto: another process is installing it; waiting"
    flock 9
  }
fi
# Whoever held the lock may have installed it.
if [ ! -e "$seal" ]; then
  python=$(command -v python3) || die "python3 is missing" "install python3 with pip and venv"
  say "moto: installing $version into $home (about 60 MB, once per user)"
  rm -rf "$home" # never whole here
  "$python" -m venv "$home" >&2 9>&- ||
    die "$python cannot make a virtual environment" "install it (Debian: apt-get install python3-venv)"
  "$home/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off --quiet \
    "moto[server,s3]==$version" >&2 9>&- ||
    die "pip could not install moto $version" \
      "pip's own message is above: without network, or behind a proxy that pip does not know, nothing can be fetched"
  touch "$seal"
fi
printf '%s\n' "$home/bin/python"
