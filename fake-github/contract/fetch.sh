#!/bin/sh
# Fetches GitHub's published descriptions into DIR (default: target/contract) and cuts out what flyci uses:
#   openapi.json   the paths that flyci calls, for Prism (a server that checks requests against the description)
#   schemas.json   JSON Schemas of the answers and webhooks of those paths
#   examples.json  the examples of @octokit/webhooks-examples, by event
#
# Nothing of it is committed. A second run does nothing. With a bearer required, a test starts Prism on loopback as
#   node DIR/node_modules/@stoplight/prism-cli/dist/index.js mock -h 127.0.0.1 -p PORT DIR/openapi.json
# and stops it by its process id. Not with --errors: two of GitHub's own examples break GitHub's schemas. Prism checks
# the form of requests, not what they mean: behaviour is the simulated GitHub's part.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-$here/../../target/contract}
packages="@octokit/openapi@23.0.2 @octokit/webhooks-examples@7.6.1 @octokit/webhooks-schemas@7.6.1 @stoplight/prism-cli@5.14.2"
stamp="$packages $(cksum < "$here/cut.mjs")"

if [ -f "$dir/stamp" ] && [ "$(cat "$dir/stamp")" = "$stamp" ]; then
    exit 0
fi
command -v npm >/dev/null || {
    echo "fetch.sh: npm is needed to fetch GitHub's descriptions; install Node.js (18 or later)" >&2
    exit 1
}
mkdir -p "$dir"
cd "$dir"
dir=$(pwd)
[ -f package.json ] || echo '{ "private": true }' > package.json
# Word splitting is meant: one word per package.
# shellcheck disable=SC2086
npm install --no-save --no-audit --no-fund --ignore-scripts --loglevel=error $packages
node "$here/cut.mjs" "$dir"
echo "$stamp" > stamp
