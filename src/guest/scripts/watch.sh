# Arguments: MARK DIRECTORY UMASK. Standard input: the JIT configuration, a line.
# Runs the runner in the background, detached from whoever began it, and leaves its exit status.

mark=$1 directory=$2 mask=$3

# Only this process, which becomes the runner, ever holds the JIT configuration.
become_runner() {
  cd "$directory" || exit 126
  umask "$mask"
  reset=
  # A shell without job control has its background ignore the signals that cancel a job's step.
  env --default-signal=INT --default-signal=QUIT true 2>/dev/null &&
    reset='env --default-signal=INT --default-signal=QUIT'
  # The guest serves one job, and has perhaps no other user.
  [ "$(id -u)" = 0 ] && export RUNNER_ALLOW_RUNASROOT=1
  IFS= read -r ACTIONS_RUNNER_INPUT_JITCONFIG <&3
  export ACTIONS_RUNNER_INPUT_JITCONFIG
  exec 3<&-
  if [ -x /bin/zsh ] && [ "$(uname)" = Darwin ]; then
    # The image's tools are on the PATH of a login alone.
    exec /bin/zsh -lc 'exec ./run.sh'
  fi
  exec $reset ./run.sh
}

# Reads what the runner says, and keeps nothing of it but whether GitHub found it too old.
watch_runner() {
  old=no code=
  while [ -z "$code" ] && IFS= read -r line; do
    case $line in
      *'is deprecated and cannot receive messages'*) old=yes ;;
      'flyci: the runner left '*) code=${line##* } ;;
    esac
  done
  [ -n "$code" ] && echo "$code $old" >"$mark/exit.new" && mv "$mark/exit.new" "$mark/exit" || exit 1
  # Whoever waits is told by the end of this pipe.
  exec 9>&-
  # What the runner left behind may still write.
  exec cat >/dev/null
}

# A process group of its own and no ignored signals, in shells that can do it without a terminal.
set -m 2>/dev/null
exec 3<&0 9<>"$mark/alive"
{
  (become_runner)
  printf '\nflyci: the runner left %s\n' "$?"
} </dev/null 2>&1 9>&- | watch_runner >/dev/null 2>&1 3<&- &
pid=$!
echo "$pid $(birth "$pid")" >"$mark/pid.new" && mv "$mark/pid.new" "$mark/pid"
