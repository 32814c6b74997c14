#!/usr/bin/env bash
# The demo: real text, a small model with most of its parameters in n-gram tables, real processes. Run it again and it
# resumes. `make demo` builds first.
#
# CORPUS=folder takes another text than the sources and documents of this workspace's own dependencies.
set -euo pipefail
cd "$(dirname "$0")/.."

polygram=target/release/polygram
data=demo-data
root=polygram-root
say() { printf '\n== %s\n' "$*"; }
die() {
  printf 'demo: %s\n' "$@" >&2
  exit 1
}

[ -x "$polygram" ] || die "$polygram is missing; run \`make demo\`, which builds it"

# The folders of the packages in Cargo.lock, as cargo unpacked them.
dependencies() {
  local registry=${CARGO_HOME:-$HOME/.cargo}/registry/src package folder
  awk -F'"' '/^name = /{name=$2} /^version = /{print name "-" $2}' Cargo.lock | while read -r package; do
    for folder in "$registry"/*/"$package"; do
      [ ! -d "$folder" ] || printf '%s\n' "$folder"
    done
  done
}

if [ -n "${CORPUS:-}" ]; then
  [ -e "$CORPUS" ] || die "CORPUS is $CORPUS, which does not exist"
  corpus=("$(realpath "$CORPUS")")
  origin=${corpus[0]}
else
  mapfile -t corpus < <(dependencies)
  origin="the dependencies' sources"
  [ ${#corpus[@]} -gt 0 ] || die "no package source lies under ${CARGO_HOME:-$HOME/.cargo}/registry/src" \
    "give a folder of text: make demo CORPUS=folder"
fi

if [ -f "$data/meta.json" ]; then
  made_from=$(cat "$data/origin" 2>/dev/null || echo "an unknown corpus")
  [ "$made_from" = "$origin" ] || die "$data was made from $made_from, not from $origin" \
    "to begin anew: rm -r $data $root/runs/demo"
  say "data: $data, made before from $origin"
else
  say "data: preparing $origin (${#corpus[@]} folders)"
  rm -rf "$data"
  "$polygram" data prepare "${corpus[@]}" --output "$data" --vocab-size 8192 --held-out 0.02 --max-bytes 16000000
  printf '%s\n' "$origin" >"$data/origin"
fi

say "a sample of the training data, read back from its tokens"
"$polygram" data inspect "$data/train" | sed -n '/^as text:/,$p' | sed 1d | head -n 12 | cut -c 1-100

# A run that is complete is trained on for half as long again, so that the second time shows a resume, too.
planned=$(sed -n 's/^steps = \([0-9]*\)$/\1/p' configs/demo.toml)
steps=$planned
committed=$("$polygram" digest demo --root "$root" -o json 2>/dev/null |
  sed -n 's/.*"step": *\([0-9]*\).*/\1/p') || committed=
while [ "${committed:-0}" -ge "$steps" ]; do
  steps=$((steps + planned / 2))
done
if [ -z "$committed" ]; then
  say "training: $steps steps"
else
  say "training: the run exists, committed at step $committed; resuming, up to step $steps"
fi
cat <<TEXT
  loss        how surprised the model is by the next token, in nats: ln(8192) = 9.01 is pure guessing; lower is better
  tok/s       training tokens a second, all workers together
  row wait    share of the time that a worker stands still until n-gram rows have come from the shards
  commit      the newest step whose whole state is in the store; a killed run continues there
  goodput     share of the time since the start that was spent in steps: the rest is starting, evaluating, committing
TEXT
"$polygram" train configs/demo.toml --root "$root" --set "training.steps=$steps"

say "how the n-gram tables are used"
"$polygram" status demo --root "$root" | sed -n '/^table /,$p' | head -n 13
cat <<TEXT
  touched     rows that training has written; the others still have their initial values
  n-grams     different n-grams of this length that were seen (estimated)
  per row     different n-grams for each touched row: 1.00 means that hardly any two share a row
  shared      share of lookups whose row some other n-gram uses too
  ideal       rows that as many n-grams would touch under a perfectly random hash
  excess      share of these that were not touched: about 0% for a good table size
TEXT

say "what to try next"
cat <<TEXT
  make demo                        again: the run goes on from its last commit
  make demo CORPUS=folder          another text (after: rm -r $data $root/runs/demo)
  alias polygram=$PWD/$polygram
  polygram metrics demo            loss, gradient norm and rate of every step
  polygram status demo             state and members; also from another terminal while it trains
  polygram plan configs/longcat-flash-lite.toml          what the full size would cost
  polygram train configs/tiny.toml --run a --set topology.shards=1 && polygram digest a
  polygram train configs/tiny.toml --run b --set topology.shards=3 && polygram digest b    the same bits
TEXT
