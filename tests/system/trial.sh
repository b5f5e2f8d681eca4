# Runs in a box: tries several relays on one machine word for word as several.md says, and upgrades them.
. ./checks.sh
old=$(echo tonk-relay_*_*.deb | tr ' ' '\n' | head -1)
new=$(echo tonk-relay_*_*.deb | tr ' ' '\n' | tail -1)
# A block of the section, by its number.
block() {
  awk -v wanted="$1" '/^## / { here = /^## Try it on one machine$/ } !here { next }
    /^```sh$/ { n++; on = n == wanted; next } /^```$/ { on = 0 } on' several.md
}
does() { bash -euxc "$(block "$1")"; }
each() { local name; for name in a b c; do "$@" $name || return; done; }
pid() { systemctl show --property MainPID --value "tonk-relay@$1"; }
pids() { pid a; pid b; pid c; }
when() { systemctl show --property "$2TimestampMonotonic" --value "tonk-relay@$1"; }
# Whether the second has stopped only after the first was ready.
one_by_one() { [ "$(when "$1" ActiveEnter)" -lt "$(when "$2" InactiveEnter)" ]; }
is_ready() { says '^ready  *yes' tonk-relay status --config "/etc/tonk-relay/$1.toml"; }
is_new() { fails says "^$(pid "$1")\$" echo "$before"; }
has_its_own() { test -d "/var/lib/tonk-relay-$1/documents" -a -S "/run/tonk-relay-$1/admin.sock"; }
opens() { says '^{"title":"Groceries"' tonk-relay client open "$(head -1 document)" --url "ws://127.0.0.1:$1" < /dev/null; }
# The relays that `cluster status` lists, by the block of the section.
lists() { [ "$(does "$2" 2> /dev/null | grep -c '^relay ')" = "$1" ]; }

dpkg -i "$old" > /dev/null 2>&1
check 'at most four commands set it up' test "$(block 1 | wc -l)" -le 4
# apt prints much.
sets_up() { does 1 > set-up.out 2>&1 || { tail -20 set-up.out; return 1; }; }
check 'they work' sets_up
[ $failed = 0 ] || exit 1
check 'all three relays are ready' each is_ready
check 'cluster status lists three relays' lists 3 2
check 'a document is made through HAProxy, and read at c' says '^{"title":"Groceries"}$' does 3
for port in 8091 8092 8093; do check "and at $port" opens $port; done
check 'each has a folder and a socket of its own' each has_its_own
check 'each can be reloaded' systemctl reload tonk-relay@a tonk-relay@b tonk-relay@c

does 4 > client.out 2>&1 &
client=$!
tar --extract --file clients.tar
TONK_RELAY=/usr/bin/tonk-relay PORT=8080 ./node clients.mjs > clients.out 2>&1 &
clients=$!
check 'clients edit all the while' until_ 200 test -e editing
while [ ! -e stop ]; do
  curl --silent --show-error --max-time 10 --output /dev/null --write-out '%{http_code}\n' http://127.0.0.1:8080/livez
  sleep 0.02
done > answers 2>&1 &
asking=$!
before=$(pids)
check 'all are restarted' does 5
check 'as new processes' each is_new
check 'one after another' one_by_one a b
check 'and the last one, too' one_by_one b c
before=$(pids)
check 'the package is upgraded' dpkg -i "$new"
check 'which restarts all of them' each is_new
check 'so that all are ready' each is_ready
check 'one after another' one_by_one a b
check 'and the last one, too' one_by_one b c
sleep 1
touch stop
wait $asking
check "HAProxy refuses nobody ($(grep -vc '^200$' answers) of $(wc -l < answers))" test "$(sort -u answers)" = 200
wait $clients
status=$?
check 'nothing that clients wrote is lost' test $status = 0
check "$(tail -1 clients.out)" says 'none lost' tail -1 clients.out
wait $client
status=$?
check 'the client of the document has ended well' test $status = 0
check 'after it was at several relays' test "$(grep -c '^\* connected ' client.out)" -gt 1
check 'with its last change' says '"count":30' opens 8093

check 'one relay is stopped, and the document is still there' says '^{.*"title":"Groceries"' does 6
check 'cluster status lists two relays' lists 2 6
systemctl start tonk-relay@a
mkdir -p /run/systemd/system/tonk-relay@.service.d
printf '%s\n' '[Service]' ExecStart= ExecStart=/bin/false > /run/systemd/system/tonk-relay@.service.d/test.conf
systemctl daemon-reload
others() { pid b; pid c; }
before=$(others)
check 'a version that does not start ends the restarts' says 'tonk-relay@a.service does not run' \
  /usr/share/tonk-relay/restart-instances
check 'so that the others go on' test "$(others)" = "$before"
rm -r /run/systemd/system/tonk-relay@.service.d
systemctl daemon-reload

check 'the trial is removed' does 7
check 'and nothing of it stays' fails ls -d /etc/tonk-relay/* /var/lib/tonk-relay-* /etc/haproxy/haproxy.cfg
names='(select datname from pg_database union all select rolname from pg_roles) as names (name)'
check 'in the database neither' says '^0$' \
  su postgres -c "psql --no-align --tuples-only --command \"select count(*) from $names where name like 'tonk%'\""

echo '[http]' > /etc/tonk-relay/d.toml
echo 'listen = ["127.0.0.1:8094"]' >> /etc/tonk-relay/d.toml
check 'an instance with documents in its own folder starts' systemctl enable --now tonk-relay@d
check 'it is ready' is_ready d
check 'the package is removed' dpkg -r tonk-relay
check 'and the instance is stopped' says '^inactive$' systemctl is-active tonk-relay@d
check 'it is purged, and says where documents are' says 'stay in /var/lib/tonk-relay-d' dpkg -P tonk-relay
check 'and no link to its unit stays' fails ls -l /etc/systemd/system/multi-user.target.wants/tonk-relay@d.service
check 'its config stays' test -f /etc/tonk-relay/d.toml
exit $failed
