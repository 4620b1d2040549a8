#!/usr/bin/env bash
# Has a tcptide write its manual pages and completions: tools/generate.sh PROGRAM FOLDER
set -euo pipefail
program=$1 folder=$2
[[ $program == */* ]] || program=./$program
mkdir -p "$folder/completions"
"$program" man "$folder/man"
"$program" completions bash >"$folder/completions/tcptide.bash"
"$program" completions zsh >"$folder/completions/_tcptide"
"$program" completions fish >"$folder/completions/tcptide.fish"
