# What every script of the guest shares. POSIX sh: dash, busybox and macOS's /bin/sh run it.

# What tells a process from a later one of the same number. Nothing when it is dead.
birth() {
  if [ -r /proc/self/stat ]; then
    { IFS= read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 0
    set -- ${stat##*) }
    case $1 in Z | X) ;; *) echo "${20}" ;; esac
  else
    LC_ALL=C ps -o lstart= -p "$1" 2>/dev/null
  fi
}

# How the runner does whose marker is $1/$2, in one line.
how() {
  if [ ! -d "$1/$2" ]; then
    # A guest in which another runner was begun is used up.
    if [ -d "$1" ]; then echo lost; else echo absent; fi
    return
  fi
  # The start may be at work this very moment.
  for _ in 1 2 3 4 5; do
    [ -f "$1/$2/pid" ] && break
    sleep 1
  done
  if { read -r pid born <"$1/$2/pid"; } 2>/dev/null && [ -n "$born" ] && [ "$(birth "$pid")" = "$born" ]; then
    alive=alive
  else
    alive=lost
  fi
  # Looked at last: it may have ended in between.
  if { IFS= read -r end <"$1/$2/exit"; } 2>/dev/null; then echo "exited $end"; else echo "$alive"; fi
}
