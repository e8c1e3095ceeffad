# Arguments: STATE NAME. Blocks until the runner has ended.

while :; do
  now=$(how "$1" "$2")
  [ "$now" = alive ] || break
  # A pipe that the runner's watcher holds open. Opened both ways first: that never blocks; then
  # for reading alone, so that the end of the watcher is the end of the pipe.
  exec 8<>"$1/$2/alive" 9<"$1/$2/alive" 8<&-
  IFS= read -r _ <&9
  exec 9<&-
  now=$(how "$1" "$2")
  [ "$now" = alive ] || break
  sleep 1
done
echo "$now"
