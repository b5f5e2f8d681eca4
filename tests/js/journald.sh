#!/usr/bin/env bash
# Runs a command as a service manager would: its stderr leads to a journald of its own, which keeps its journal in FOLDER.
# usage, as root: unshare --mount tests/js/journald.sh FOLDER COMMAND [ARGUMENT...]
set -euo pipefail
folder=$1
shift
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal /run/log/journal "$folder"
mount --bind "$folder" /run/log/journal
/lib/systemd/systemd-journald &
journald=$!
trap 'kill $journald' EXIT
until [ -S /run/systemd/journal/socket ] && [ -S /run/systemd/journal/stdout ]; do sleep 0.05; done
status=0
# systemd-cat gives it the journal for stderr; the service manager also says so (systemd.exec(5), JOURNAL_STREAM).
systemd-cat bash -c 'export JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2); exec "$@"' bash "$@" &
child=$!
trap 'kill -TERM $child' TERM
wait $child || status=$?
# A signal ends the wait; what it asked for takes a little longer.
wait $child || status=$?
exit $status
