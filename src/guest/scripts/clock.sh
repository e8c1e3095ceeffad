# Arguments: the time in Unix seconds, and as `date` is told it. Standard input: entropy.
# For agents that cannot prepare their machine: stock images, whose clock is right at boot.

cat 2>/dev/null >/dev/urandom
off() {
  now=$(date +%s) || return 0
  [ $((now - $1)) -gt 60 ] || [ $(($1 - now)) -gt 60 ]
}
off "$1" || exit 0
{ date -u "$2" || sudo -n date -u "$2"; } >/dev/null 2>&1
! off "$1"
