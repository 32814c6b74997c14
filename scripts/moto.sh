#!/usr/bin/env bash
# Prints the Python that has moto, a stand-in for Amazon S3 that the tests run on this machine; installs it first where
# it is missing. Nothing but the path is written to standard output.
set -euo pipefail

what=moto
. "$(dirname "${BASH_SOURCE[0]}")/install.sh"

version=5.2.5
home=$cache/moto-$version

# The mark is made last: a folder without it is not whole.
is_whole() { [ -e "$home/whole" ]; }

install_moto() {
  local python
  python=$(command -v python3) || die "python3 is missing" "install python3 with pip and venv"
  say "moto: installing $version into $home (about 60 MB, once per user)"
  rm -rf "$home" # never whole here
  "$python" -m venv "$home" >&2 9>&- ||
    die "$python cannot make a virtual environment" "install it (Debian: apt-get install python3-venv)"
  "$home/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off --quiet \
    "moto[server,s3]==$version" >&2 9>&- ||
    die "pip could not install moto $version" \
      "pip's own message is above: without network, or behind a proxy that pip does not know, nothing can be fetched"
  touch "$home/whole"
}

install_once is_whole install_moto
printf '%s\n' "$home/bin/python"
