# Arguments: STATE NAME SETUP_INFO WATCH DIRECTORY...
# Standard input: the length of the JIT configuration, a space, the JIT configuration, a newline.
# Starts the runner at most once in the guest's life.

state=$1 name=$2 setup_info=$3 watch=$4
shift 4
mask=$(umask)
umask 077

# All of it came, or nothing was begun.
IFS=' ' read -r length jit || exit 64
[ -n "$jit" ] && [ "${#jit}" = "$length" ] || exit 64

directory=
for candidate; do
  case $candidate in '~/'*) candidate=$HOME/${candidate#'~/'} ;; esac
  if [ -f "$candidate/run.sh" ]; then
    directory=$candidate
    break
  fi
done
[ -n "$directory" ] || exit 66

# The marker: whoever makes it may start, and nobody after.
mkdir -p "${state%/*}"
mkdir "$state" 2>/dev/null || { [ -d "$state" ] && exit 73 || exit 74; }
mark=$state/$name
mkdir "$mark" && mkfifo "$mark/alive" || exit 74

# GitHub's runner writes into its own directory.
if ! { printf '%s' "$setup_info" >"$directory/.setup_info"; } 2>/dev/null; then
  mkdir "$mark/runner" && cp -R "$directory/." "$mark/runner/" && chmod -R u+w "$mark/runner" &&
    rm -rf "$mark/runner/.setup_info" || exit 74
  directory=$mark/runner
  printf '%s' "$setup_info" >"$directory/.setup_info" || exit 74
fi

# A session of its own where there is the means; the watch script sees to it otherwise.
detach=
command -v setsid >/dev/null 2>&1 && detach=setsid
printf '%s\n' "$jit" | $detach /bin/sh -c "$watch" flyci "$mark" "$directory" "$mask" >/dev/null 2>&1
[ -f "$mark/pid" ] || exit 70
