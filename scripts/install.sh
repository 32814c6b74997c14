# What the scripts that install something have in common; they source it, with `what` set to its name.
# shellcheck shell=bash

# All clones of one user share what is installed.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/polygram

say() { printf '%s\n' "$*" >&2; }
die() {
  say "$what: $1"
  shift
  [ $# -eq 0 ] || printf '  %s\n' "$@" >&2
  exit 1
}

# Calls the function $2, which installs, unless the function $1 finds that nothing is missing. One process at a time:
# the lock is file descriptor 9, which children that may outlive the script are to close.
install_once() {
  if "$1"; then return; fi
  mkdir -p "$cache"
  command -v flock >/dev/null || die "the command flock is missing" "install util-linux"
  exec 9>"$cache/$what.lock"
  flock -n 9 || {
    say "$what: another process is installing it; waiting"
    flock 9
  }
  # Whoever held the lock may have installed it.
  if "$1"; then return; fi
  "$2"
}
