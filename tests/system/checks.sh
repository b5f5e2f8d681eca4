# For scripts that run in a box. Each check prints a line; $1 describes it.
set -u
failed=0
check() {
  local what=$1
  shift
  if output=$("$@" 2>&1); then
    echo "ok - $what"
  else
    echo "not ok - $what: $* : $output"
    failed=1
  fi
}
says() {
  local expected=$1 said
  shift
  said=$("$@" 2>&1) || true
  echo "$said"
  grep -q -- "$expected" <<< "$said"
}
fails() { ! "$@"; }
until_() { for _ in $(seq "$1"); do "${@:2}" && return; sleep 0.1; done; return 1; }
