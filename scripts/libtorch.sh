#!/usr/bin/env bash
# Prints the folder of libtorch, the value that LIBTORCH should have; installs it first where it is missing.
#
# An existing LIBTORCH wins, once it has been checked. Otherwise libtorch comes from PyTorch's wheel, in a cache
# that all clones of one user share, without the gigabytes of CUDA wheels that the CPU never loads. Nothing but the
# path is written to standard output.
set -euo pipefail

what=libtorch
. "$(dirname "${BASH_SOURCE[0]}")/install.sh"

version=2.11.0
wheels=(torch==$version nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85)
# Only libraries and headers are used, so any Python for which a wheel exists will do; the one at hand just runs pip.
wheel_python=3.12
home=$cache/libtorch-$version

# The version of the libtorch in folder $1, without "+cu130" and the like; empty where no file tells.
version_of() {
  if [ -f "$1/build-version" ]; then
    cut -d+ -f1 <"$1/build-version"
  elif [ -f "$1/version.py" ]; then
    sed -n "s/^__version__ = '\([^+']*\).*/\1/p" "$1/version.py"
  fi
}

is_whole() { [ -f "$1/torch/lib/libtorch_cpu.so" ] && [ "$(version_of "$1/torch")" = "$version" ]; }

if [ -n "${LIBTORCH:-}" ]; then
  [ -f "$LIBTORCH/lib/libtorch_cpu.so" ] || die "LIBTORCH is $LIBTORCH, which has no lib/libtorch_cpu.so" \
    "point it at a libtorch $version (the torch folder of a PyTorch install), or unset it to have one installed"
  found=$(version_of "$LIBTORCH")
  [ "$found" = "$version" ] || [ -n "${LIBTORCH_BYPASS_VERSION_CHECK:-}" ] ||
    die "LIBTORCH is $LIBTORCH, which is version ${found:-unknown}; this project needs $version" \
      "point it at a libtorch $version, or unset it to have one installed" \
      "(LIBTORCH_BYPASS_VERSION_CHECK=1 takes it as it is)"
  printf '%s\n' "$LIBTORCH"
  exit 0
fi

is_installed() { is_whole "$home"; }

install_libtorch() {
  local python
  python=$(command -v python3) || die "python3 is missing" "install python3 and pip, or set LIBTORCH to a libtorch $version"
  "$python" -m pip --version >/dev/null 2>&1 ||
    die "$python has no pip" "install it (Debian: apt-get install python3-pip), or set LIBTORCH to a libtorch $version"
  [ "$(uname -s)" = Linux ] || die "installing works on Linux only" "set LIBTORCH to a libtorch $version"
  say "libtorch: installing $version into $home (a download of about half a gigabyte, once per user)"
  new=$(mktemp -d "$cache/libtorch-$version.XXXXXX")
  trap 'rm -rf "$new"' EXIT
  "$python" -m pip install --disable-pip-version-check --no-input --no-cache-dir --no-deps --progress-bar off \
    --only-binary=:all: --python-version "$wheel_python" --target "$new" "${wheels[@]}" >&2 9>&- ||
    die "pip could not install ${wheels[*]}" \
      "pip's own message is above: without network, or behind a proxy that pip does not know, nothing can be fetched;" \
      "there are wheels for x86-64 and aarch64 Linux with glibc 2.28 or later" \
      "on a machine without network set LIBTORCH to the torch folder of a PyTorch $version install"
  is_whole "$new" || die "pip succeeded, but $new/torch is not a libtorch $version" "report this with pip's output above"
  chmod 755 "$new"
  rm -rf "$home" # never whole here
  mv -T "$new" "$home"
  trap - EXIT
}

install_once is_installed install_libtorch
printf '%s\n' "$home/torch"
