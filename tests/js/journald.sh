#!/usr/bin/env bash
# Runs a command as a service manager would: its stderr is connected to a journald of its own, whose
# journal is in FOLDER.
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
# systemd-cat connects stderr to the journal. A service manager also sets JOURNAL_STREAM
# (systemd.exec(5)).
systemd-cat bash -c 'export JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2); exec "$@"' bash "$@" &
child=$!
trap 'kill -TERM $child' TERM
wait $child || status=$?
# A signal interrupts the wait before the command has ended.
wait $child || status=$?
exit $status
