# Runs in a box: the life of the package, from the first install to the purge. $1 of each check is what is checked.
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
pid() { systemctl show --property MainPID --value tonk-relay; }
active() { for _ in $(seq 100); do [ "$(systemctl is-active tonk-relay)" = "${1:-active}" ] && return; sleep 0.1; done; return 1; }
old=$(echo tonk-relay_*_*.deb | tr ' ' '\n' | head -1)
new=$(echo tonk-relay_*_*.deb | tr ' ' '\n' | tail -1)

check 'it installs' dpkg -i "$old"
check 'it is started, as Debian does it' active
check 'and at the next boot, too' says '^enabled$' systemctl is-enabled tonk-relay
check 'the backup timer is not' says '^disabled$' systemctl is-enabled tonk-relay-backup.timer
check 'systemctl status says how it is' says 'Status: "Serving' systemctl status tonk-relay
check 'it is ready' says '^ok$' curl --silent http://127.0.0.1:8081/readyz
check 'the admin socket is there' says '^ready  *yes' tonk-relay status
check 'it runs as its own user' says '^tonk-relay$' stat --format=%U "/proc/$(pid)"
check 'others read nothing of what is stored' says '^750$' stat --format=%a /var/lib/tonk-relay
exposure=$(systemd-analyze security tonk-relay --no-pager | sed -n 's/.*Overall exposure level.*: \([0-9.]*\) .*/\1/p')
check "the exposure is $exposure" awk "BEGIN { exit !($exposure <= 1.2) }"
check 'the manual is there' test -s /usr/share/man/man8/tonk-relay.8.gz
faults=$(systemd-analyze verify /usr/lib/systemd/system/tonk-relay*.service 2>&1 | grep -v "Command 'man ")
check "systemd finds nothing amiss in the units: $faults" test -z "$faults"
# What a container may raise it to is another matter.
check 'it may open many files' says 'LimitNOFILE=65536' systemctl show --property LimitNOFILE tonk-relay

sed -i 's/^#idle_unload = .*/idle_unload = "5m"/' /etc/tonk-relay.toml
check 'it reloads' systemctl reload tonk-relay
check 'and says what it took over' says 'sync.idle_unload' journalctl --unit tonk-relay
before=$(pid)
echo 'nonsense = 1' >> /etc/tonk-relay.toml
check 'a reload that is refused fails' fails systemctl reload tonk-relay
check 'with the reason' says 'nonsense: unknown key' journalctl --unit tonk-relay
sed -i '/^nonsense/d' /etc/tonk-relay.toml
check 'and it goes on' test "$before" = "$(pid)"
check 'the journal has its fields' says '"MESSAGE":"ready"' journalctl --unit tonk-relay --output json

check 'it takes a bundle' says '"new":3' curl --silent --header 'content-type: application/octet-stream' \
  --data-binary @demo.tonk http://127.0.0.1:8081/api/bundles
check 'the backup unit runs' systemctl start tonk-relay-backup.service
check 'and makes a good backup' says '3 documents' tonk-relay fsck /var/backups/tonk-relay

check 'it is upgraded' dpkg -i "$new"
check 'and runs' active
check 'as a new process' test "$before" != "$(pid)"
check 'with the config that was edited' grep -q '^idle_unload' /etc/tonk-relay.toml
check 'and all documents' says '3 documents' tonk-relay fsck

kill -KILL "$(pid)"
check 'after a crash it is started again' active
cp /etc/tonk-relay.toml good.toml
echo 'drain_timeout = "soon"' > /etc/tonk-relay.toml
check 'a config that is wrong keeps it down' fails systemctl restart tonk-relay
check 'with the reason' says 'drain_timeout: "soon" is no duration' journalctl --unit tonk-relay
check 'and does not fail an upgrade' dpkg -i "$new"
cp good.toml /etc/tonk-relay.toml
systemctl reset-failed tonk-relay
check 'it starts again' systemctl start tonk-relay
check 'it stops' systemctl stop tonk-relay
check 'with all durable' says 'all is durable' journalctl --unit tonk-relay
check 'the commands work while it is stopped' says '3 documents' tonk-relay fsck
check 'and leave the files to their owner' says '^tonk-relay$' stat --format=%U /var/lib/tonk-relay/documents/.journal
systemctl start tonk-relay

check 'it is removed' dpkg -r tonk-relay
check 'and stopped' active inactive
check 'its config stays' test -f /etc/tonk-relay.toml
check 'it is purged, and says where documents are' says 'stay in /var/lib/tonk-relay' dpkg -P tonk-relay
check 'its config goes' test ! -e /etc/tonk-relay.toml
check 'the documents stay' test -d /var/lib/tonk-relay/documents
exit $failed
