#!/bin/sh
# Stands in for the run.sh of GitHub's runner: starts fake-runner from its own directory. By exec, since this shell's
# own environment holds the JIT configuration for as long as it lives.
cd "$(dirname "$0")" || exit 1
exec ./fake-runner --dir "$PWD" "$@"
