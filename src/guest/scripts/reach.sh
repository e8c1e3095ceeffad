# Arguments: ADDRESS PORT, again and again. Prints the number of each, from 0, that a connection is made to, and `done`.

if command -v nc >/dev/null 2>&1; then
  # Apple's limits the wait for a connection by another option.
  case $(nc -h 2>&1) in *-G*) limit='-z -G 3 -w 3' ;; *) limit='-w 3' ;; esac
  try() { nc $limit "$1" "$2"; }
elif command -v bash >/dev/null 2>&1 && command -v timeout >/dev/null 2>&1; then
  try() { timeout 3 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$1" "$2"; }
else
  exit 69
fi

# All at once; the pipe ends when the last has tried. (busybox's `wait` was seen to wait for ever.)
{
  number=0
  while [ $# -ge 2 ]; do
    { try "$1" "$2" </dev/null >/dev/null 2>&1 && echo "$number"; } &
    number=$((number + 1))
    shift 2
  done
} | cat
echo done
