# Runs in a box: tests the package from the first install to the purge.
. ./checks.sh
pid() { systemctl show --property MainPID --value tonk-relay; }
is() { [ "$(systemctl is-active tonk-relay)" = "$1" ]; }
active() { until_ 100 is "${1:-active}"; }
is_new() { local now; now=$(pid); [ "$now" != "$1" ] && [ "$now" != 0 ] && is active; }
# A temporary drop-in of the unit.
with() {
  mkdir -p /run/systemd/system/tonk-relay.service.d
  printf '%s\n' '[Service]' "$@" > /run/systemd/system/tonk-relay.service.d/test.conf
  systemctl daemon-reload
}
without() {
  rm /run/systemd/system/tonk-relay.service.d/test.conf
  systemctl daemon-reload
}
# A client of the sync protocol that joins and then sends nothing: an upgrade, and a frame with a join
# message.
connect() {
  local socket
  exec {socket}<>/dev/tcp/127.0.0.1/8081
  printf 'GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' >&"$socket"
  printf 'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n' >&"$socket"
  printf '\202\322\0\0\0\0\244dtypedjoinhsenderIddc%03dlpeerMetadata\241kisEphemeral\365' "$1" >&"$socket"
  printf 'x\031supportedProtocolVersions\201a1' >&"$socket"
}
joined() { says "^connections *$1 ($1 peers)" tonk-relay status; }
old=$(echo tonk-relay_*_*.deb | tr ' ' '\n' | head -1)
new=$(echo tonk-relay_*_*.deb | tr ' ' '\n' | tail -1)

check 'it installs' dpkg -i "$old"
check 'it is started, as Debian does it' active
check 'and at the next boot, too' says '^enabled$' systemctl is-enabled tonk-relay
check 'the backup timer is not' says '^disabled$' systemctl is-enabled tonk-relay-backup.timer
check 'systemctl status says how it is' says 'Status: "Serving' systemctl status tonk-relay
check 'it is ready' says '^ok$' curl --silent http://127.0.0.1:8081/readyz
check 'the admin socket is there' says '^ready  *yes' tonk-relay status
limited() {
  local limit ram
  limit=$(tonk-relay status --json | sed -n 's/.*"memory_limit_bytes": \([0-9]*\).*/\1/p')
  ram=$(awk '/^MemTotal:/ { printf "%.0f", $2 * 1024 }' /proc/meminfo)
  [ "$limit" -gt 0 ] && [ "$limit" -lt "$ram" ]
}
check 'it knows the memory of the machine' limited
check 'it runs as its own user' says '^tonk-relay$' stat --format=%U "/proc/$(pid)"
check 'others read nothing of what is stored' says '^750$' stat --format=%a /var/lib/tonk-relay
exposure=$(systemd-analyze security tonk-relay --no-pager | sed -n 's/.*Overall exposure level.*: \([0-9.]*\) .*/\1/p')
check "the exposure is $exposure" awk "BEGIN { exit !($exposure <= 1.2) }"
exposure=$(systemd-analyze security tonk-relay-backup --no-pager | sed -n 's/.*Overall exposure level.*: \([0-9.]*\) .*/\1/p')
check "that of the backup is $exposure" awk "BEGIN { exit !($exposure <= 2.0) }"
check 'dashboards are there' test -s /usr/share/tonk-relay/grafana/overview.json
check 'rules, and what to do when they fire' test -s /usr/share/tonk-relay/prometheus/tonk-relay.rules.yml -a \
  -s /usr/share/doc/tonk-relay/runbooks.md
check 'the socket unit is not enabled' says '^disabled$' systemctl is-enabled tonk-relay.socket
check 'the status page answers' says '"ready":true' curl --silent http://127.0.0.1:9464/status
check 'the manual is there' test -s /usr/share/man/man8/tonk-relay.8.gz
faults=$(systemd-analyze verify /usr/lib/systemd/system/tonk-relay*.service 2>&1 | grep -v "Command 'man ")
check "systemd finds nothing amiss in the units: $faults" test -z "$faults"
# A container may limit how far it can be raised.
check 'it may open many files' says 'LimitNOFILE=65536' systemctl show --property LimitNOFILE tonk-relay

sed -i 's/^#idle_unload = .*/idle_unload = "5m"/' /etc/tonk-relay.toml
check 'it reloads' systemctl reload tonk-relay
check 'the watchdog is fed' says 'WatchdogUSec=1min' systemctl show --property WatchdogUSec tonk-relay
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
check 'no backup was made yet' says '^last backup  never' tonk-relay status
check 'root makes a backup' tonk-relay backup /var/backups/tonk-relay
check 'the backup unit takes it over' systemctl start tonk-relay-backup.service
check 'and makes a good backup' says '3 documents' tonk-relay fsck /var/backups/tonk-relay
check 'which status shows' says '^last backup  20' tonk-relay status
check 'root updates it' tonk-relay backup /var/backups/tonk-relay
check 'and the files stay those of the service' says '^tonk-relay$' \
  stat --format=%U /var/backups/tonk-relay/backup.json
check 'so that the unit can update them again' systemctl start tonk-relay-backup.service
systemctl stop tonk-relay
check 'and does so while the relay is stopped' systemctl start tonk-relay-backup.service
systemctl start tonk-relay

tar --extract --file clients.tar
TONK_RELAY=/usr/bin/tonk-relay ./node clients.mjs > clients.out 2>&1 &
clients=$!
check 'clients edit all the while' until_ 200 test -e editing
check 'it is upgraded' dpkg -i "$new"
check 'and runs' active
check 'as a new process' test "$before" != "$(pid)"
sleep 2
touch stop
wait $clients
status=$?
check 'nothing that they wrote is lost' test $status = 0
check "$(tail -1 clients.out)" says 'none lost' tail -1 clients.out
check 'with the config that was edited' grep -q '^idle_unload' /etc/tonk-relay.toml
check 'and all documents' says '^24 documents.* 0 damages' tonk-relay fsck

kill -KILL "$(pid)"
check 'after a crash it is started again' active
systemctl reset-failed tonk-relay
with WatchdogSec=2 TimeoutAbortSec=1
systemctl restart tonk-relay
before=$(pid)
kill -STOP "$before"
check 'one that hangs is ended, and started again' until_ 150 is_new "$before"
check 'by the watchdog' says 'Watchdog timeout' journalctl --unit tonk-relay
without
systemctl reset-failed tonk-relay
systemctl restart tonk-relay
restarts() { local n; for n in 1 2 3 4 5 6 7; do systemctl restart tonk-relay || return; done; }
check 'somebody may restart it seven times in a row' restarts
crash() {
  local now
  now=$(pid)
  # 0 while there is none.
  [ "$now" = 0 ] || kill -KILL "$now" 2>/dev/null
  is failed
}
check 'a crash loop ends' until_ 900 crash
check 'and says so' says 'start-limit-hit\|repeated too quickly' journalctl --unit tonk-relay
systemctl reset-failed tonk-relay
check 'and it can be started again' systemctl start tonk-relay

ulimit -n 1024
for n in $(seq 200); do connect "$n"; done
check '200 clients are here' until_ 100 joined 200
check 'systemctl status counts them' until_ 100 says '(200 connections, 0 documents)' systemctl status tonk-relay
began=$(date +%s)
check 'it stops' systemctl stop tonk-relay
check 'within the time it has' test $(($(date +%s) - began)) -lt 30
check 'having told all of them' says 'draining: 200 connections' journalctl --unit tonk-relay
check 'and with success' says 'Result=success' systemctl show --property Result tonk-relay
systemctl start tonk-relay

# The relay waits five seconds for a request that has started.
with TimeoutStopSec=1
systemctl restart tonk-relay
head -c 5000000 /dev/zero | curl --silent --limit-rate 20k --header 'content-type: application/octet-stream' \
  --data-binary @- http://127.0.0.1:8081/api/bundles > /dev/null &
sleep 1
check 'it stops slowly' systemctl stop tonk-relay
check 'and no timeout of the unit cuts it short' says 'Result=success' systemctl show --property Result tonk-relay
without

check 'systemd can listen for it' systemctl enable --now tonk-relay.socket
check 'and starts it with the first connection' says '^ok$' curl --silent http://127.0.0.1:8081/livez
systemctl reset-failed tonk-relay
for _ in $(seq 300); do
  curl --silent --show-error --max-time 10 --output /dev/null --write-out '%{http_code}\n' http://127.0.0.1:8081/livez
done > answers 2>&1 &
asking=$!
for _ in 1 2 3; do systemctl restart tonk-relay; done
wait $asking
check "then restarts refuse nobody ($(grep -v '^200$' answers))" test "$(grep -c '^200$' answers)" = 300
check 'both are stopped' systemctl disable --now tonk-relay.socket
systemctl stop tonk-relay
systemctl reset-failed tonk-relay
systemctl start tonk-relay
cp /etc/tonk-relay.toml good.toml
echo 'drain_timeout = "soon"' > /etc/tonk-relay.toml
check 'a config that is wrong keeps it down' fails systemctl restart tonk-relay
check 'with the reason' says 'drain_timeout: "soon" is not a duration' journalctl --unit tonk-relay
sleep 2
check 'and it is not tried again' says 'NRestarts=0' systemctl show --property NRestarts tonk-relay
check 'and does not fail an upgrade' dpkg -i "$new"
cp good.toml /etc/tonk-relay.toml
systemctl reset-failed tonk-relay
check 'it starts again' systemctl start tonk-relay
check 'it stops again' systemctl stop tonk-relay
check 'with all durable' says 'all documents are durable' journalctl --unit tonk-relay
check 'the commands work while it is stopped' says '^24 documents.* 0 damages' tonk-relay fsck
check 'and leave the files to their owner' says '^tonk-relay$' stat --format=%U /var/lib/tonk-relay/documents/.journal
systemctl start tonk-relay

cp /etc/tonk-relay.toml good.toml
mkdir /mnt/disk
mount -t tmpfs tmpfs /mnt/disk
install -d -o tonk-relay -g tonk-relay -m 750 /mnt/disk/documents
sed -i 's|^#path = "/var/lib/tonk-relay/documents".*|path = "/mnt/disk/documents"|' /etc/tonk-relay.toml
check 'a folder on another disk needs a drop-in, and the check says so' \
  says 'storage.path: /mnt/disk/documents: tonk-relay.service makes it read-only .*ReadWritePaths=/mnt/disk/documents' \
  tonk-relay --check-config
with ReadWritePaths=/mnt/disk/documents
check 'with it the check finds no fault' says 'no fault (checked as the user tonk-relay' tonk-relay --check-config
check 'and the relay starts' systemctl restart tonk-relay
check 'with its documents there' test -d /mnt/disk/documents/.journal
cp demo.tonk /root/app.tonk
sed -i 's|^\[bundle\]|[bundle]\npath = "/root/app.tonk"|' /etc/tonk-relay.toml
check 'what the sandbox hides is named' says 'bundle.path: /root/app.tonk: tonk-relay.service hides it .*ProtectHome=yes' \
  tonk-relay --check-config
without
cp good.toml /etc/tonk-relay.toml
chmod 600 /etc/tonk-relay.toml
check 'and a config that only root may read' says 'tonk-relay.toml: .*user tonk-relay' tonk-relay --check-config
chmod 644 /etc/tonk-relay.toml
systemctl restart tonk-relay

mkdir lineage
echo certificate > lineage/fullchain.pem
echo key > lineage/privkey.pem
check 'the hook for certbot brings a certificate' env RENEWED_LINEAGE=/test/lineage /usr/share/tonk-relay/certbot-deploy-hook
check 'for the relay and root alone' says '^640 root tonk-relay$' stat --format='%a %U %G' /etc/tonk-relay.tls/privkey.pem

token=$(tonk-relay token add phone --scope download 2> /dev/null)
check 'a token is made for the relay and root alone' says '^640 root tonk-relay$' stat --format='%a %U %G' /etc/tonk-relay.tokens
sed -i 's/^#mode = ""/mode = "token"/' /etc/tonk-relay.toml
check 'a reload asks for tokens' systemctl reload tonk-relay
asks() { curl --silent --output /dev/null --write-out '%{http_code}' "$@" http://127.0.0.1:8081/api/blank-tonk; }
check 'and lets nobody in without one' says '^401$' asks
check 'but who has it' fails says '^40[13]$' asks --header "authorization: Bearer $token"
check 'which is noted' until_ 400 says 'phone.*used 20' tonk-relay token list

check 'it is removed' dpkg -r tonk-relay
check 'and stopped' active inactive
check 'its config stays' test -f /etc/tonk-relay.toml
check 'it is purged, and says where documents are' says 'stay in /var/lib/tonk-relay' dpkg -P tonk-relay
check 'its config goes' test ! -e /etc/tonk-relay.toml
check 'and its tokens' test ! -e /etc/tonk-relay.tokens
check 'the documents stay' test -d /var/lib/tonk-relay/documents
exit $failed
