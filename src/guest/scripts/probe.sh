# Arguments: STATE NAME.
how "$1" "$2"
